//! A file of types, which may come from anywhere: it is bounded and checked before anything is
//! looked up in it. What its types say is not judged here.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    os::fd::AsRawFd,
    path::Path,
};

use btf_rs::{Backend, Btf};
use rustix::fs::{MemfdFlags, memfd_create};

/// More than any kernel's: those of distributions have 4 to 8 MiB, debug kernels a few times
/// that.
const LARGEST: u64 = 64 << 20;

/// Names of the kernel are shorter (`KSYM_NAME_LEN`).
const LONGEST_NAME: usize = 512;

/// Bytes of the header (`struct btf_header`).
const HEADER: usize = 24;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Reading failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A device, a pipe, a folder.
    #[error("it is not a regular file")]
    NotRegular,
    /// It is larger than any kernel's.
    #[error("it is larger than any kernel's ({} MiB)", LARGEST >> 20)]
    TooLarge,
    /// It breaks the format.
    #[error("it is not BTF: {0}")]
    Format(&'static str),
    /// The reader of types does not take it.
    #[error("{0}")]
    Reader(#[from] btf_rs::Error),
}

/// The bytes of a file that is BTF by its outer form.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    // Asked before it is opened: opening a pipe waits for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(FileError::NotRegular);
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(FileError::TooLarge);
    }
    check(&bytes)?;
    Ok(bytes)
}

/// Checks the outer form: the header, and that its two parts are inside.
pub(super) fn check(bytes: &[u8]) -> Result<(), FileError> {
    let word = |place: usize| -> Option<u64> {
        let word = bytes.get(place..place + 4)?;
        Some(u64::from(u32::from_le_bytes(word.try_into().ok()?)))
    };
    let (Some(begin), Some(header), Some(types_at), Some(types), Some(names_at), Some(names)) =
        (word(0), word(4), word(8), word(12), word(16), word(20))
    else {
        return Err(FileError::Format("it is shorter than the header"));
    };
    match begin.to_le_bytes() {
        [0x9f, 0xeb, 1, 0, ..] => {}
        [_, _, 0x9f, 0xeb, ..] | [0xeb, 0x9f, ..] => {
            return Err(FileError::Format("it is a big-endian kernel's"));
        }
        _ => return Err(FileError::Format("it does not begin as BTF does")),
    }
    // The sums are of three numbers of 32 bits.
    let length = bytes.len() as u64;
    if header < HEADER as u64
        || header + types_at + types > length
        || header + names_at + names > length
    {
        return Err(FileError::Format("it is cut off, or its header is wrong"));
    }
    let start = (header + names_at) as usize;
    let names = &bytes[start..start + names as usize];
    if names.first() != Some(&0) || names.last() != Some(&0) {
        return Err(FileError::Format("its names have no end"));
    }
    // Each type may have the same name: with one of megabytes they would take hours.
    if names
        .split(|byte| *byte == 0)
        .any(|name| name.len() >= LONGEST_NAME)
    {
        return Err(FileError::Format("it has a name longer than any kernel's"));
    }
    Ok(())
}

/// Reads types through a mapping of memory, which takes an eighth of the time and a tenth of
/// the memory of parsing them whole; where that cannot be done they are parsed.
pub(super) fn open(bytes: &[u8]) -> Result<Btf, btf_rs::Error> {
    let copied = || -> io::Result<File> {
        let mut copy = File::from(memfd_create("btf", MemfdFlags::CLOEXEC)?);
        copy.write_all(bytes)?;
        Ok(copy)
    };
    let Ok(copy) = copied() else {
        return Btf::from_bytes(bytes);
    };
    let mapped = format!("/proc/self/fd/{}", copy.as_raw_fd());
    if Path::new(&mapped).exists() {
        Btf::from_file_with_backend(mapped, Backend::Mmap)
    } else {
        Btf::from_bytes(bytes)
    }
}

/// The running kernel's own, which is what it says. Kernels before 6.16 cannot map their file,
/// so that a copy is mapped.
pub(super) fn open_system(path: &Path) -> Result<Btf, FileError> {
    if let Ok(btf) = Btf::from_file_with_backend(path, Backend::Mmap) {
        return Ok(btf);
    }
    Ok(open(&std::fs::read(path)?)?)
}
