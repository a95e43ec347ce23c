//! BPF programs of the tests, and maps filled by them: kinds and commands that the BPF library
//! does not offer.

#![expect(
    unsafe_code,
    reason = "kinds of BPF programs that the library does not offer, loaded by the system call"
)]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    maps::{MapData, MapType},
    util::nr_cpus,
};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Loads a program that changes what the function of that number in the kernel's BTF
/// returns, and attaches it as long as both live.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn modify_return(function: u32, code: &str) -> Result<[OwnedFd; 2]> {
    let program = load(code, |attr| {
        // SAFETY: all fields of the union are plain data.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
        load.expected_attach_type = bpf_attach_type::BPF_MODIFY_RETURN as u32;
        load.attach_btf_id = function;
    })?;
    let mut attr = no_attributes();
    attr.raw_tracepoint.prog_fd = program.as_raw_fd().cast_unsigned();
    let link = owned(bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr).context("cannot attach")?);
    Ok([link, program])
}

/// Runs a program of a traffic class so many times, each for a packet of its own on the
/// loopback device of the calling thread's namespace. What it returned at last.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn run_classifier(code: &str, times: u32) -> Result<u32> {
    let program = load(code, |attr| {
        // SAFETY: as above.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    })?;
    // An Ethernet header that says IPv4, and nothing behind it that anybody reads.
    let mut packet = [0u8; 64];
    packet[12] = 8;
    let mut attr = no_attributes();
    attr.test.prog_fd = program.as_raw_fd().cast_unsigned();
    attr.test.data_in = packet.as_ptr().expose_provenance() as u64;
    attr.test.data_size_in = u32::try_from(packet.len())?;
    attr.test.repeat = times;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).context("cannot run")?;
    // SAFETY: the kernel has filled in this member.
    Ok(unsafe { attr.test.retval })
}

/// Takes every free place of a map. How many there were. Of an array all are taken, by values of
/// ones. Else it is for keys that only differ in their first eight bytes, and values of zeroes.
///
/// # Errors
/// If it is no map of that kind, or the kernel refuses.
pub(crate) fn fill(map: &MapData) -> Result<usize> {
    let info = map.info()?;
    let key_size = info.key_size() as usize;
    // A value for each CPU, each of whole words, where there is one for each.
    let is_array = info.map_type()? == MapType::Array;
    let value = vec![
        if is_array { u64::MAX } else { 0 };
        (info.value_size() as usize).div_ceil(8)
            * nr_cpus().map_err(|(_, error)| error)?
    ];
    let mut key = vec![0u64; key_size.div_ceil(8).max(1)];
    for taken in 0..=info.max_entries() as usize {
        // Not what an address or a number of the kernel's is.
        key[0] = taken as u64;
        if !is_array {
            key[0] += 0x7174_0000_0000_0000;
        }
        let mut attr = no_attributes();
        // SAFETY: all fields of the union are plain data.
        let element = unsafe { &mut attr.__bindgen_anon_2 };
        element.map_fd = map.fd().as_fd().as_raw_fd().cast_unsigned();
        element.key = key.as_ptr().expose_provenance() as u64;
        element.__bindgen_anon_1.value = value.as_ptr().expose_provenance() as u64;
        match bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => return Ok(taken),
            Err(error) => return Err(error).context("cannot fill the map"),
        }
    }
    bail!("it takes more than it has room for")
}

fn load(code: &str, fill_in: impl FnOnce(&mut bpf_attr)) -> Result<OwnedFd> {
    const LICENSE: &CStr = c"GPL";
    let code = rbpf::assembler::assemble(code).map_err(|error| anyhow!("{error}"))?;
    lift_memory_limit();
    let mut log = vec![0u8; 1 << 16];
    let mut attr = no_attributes();
    fill_in(&mut attr);
    // SAFETY: as above.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.insns = code.as_ptr().expose_provenance() as u64;
    load.insn_cnt = u32::try_from(code.len() / 8)?;
    load.license = LICENSE.as_ptr().expose_provenance() as u64;
    load.log_level = 1;
    load.log_buf = log.as_mut_ptr().expose_provenance() as u64;
    load.log_size = u32::try_from(log.len())?;
    let program = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).with_context(|| {
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
        format!("cannot load: {}", String::from_utf8_lossy(&log[..end]))
    })?;
    Ok(owned(program))
}

/// Kernels before 5.11 count BPF programs as locked memory. One that refuses to lift the
/// limit may still have room under it.
fn lift_memory_limit() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let _ = setrlimit(Resource::Memlock, unlimited);
}

fn no_attributes() -> bpf_attr {
    // SAFETY: plain data, for which all zeroes is a value.
    unsafe { std::mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_int> {
    // SAFETY: the attributes, and what they point to, live until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *attr,
            size_of_val(attr),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as libc::c_int)
}

fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
