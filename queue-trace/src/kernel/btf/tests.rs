//! Tests of what is read from types: of the kernels in `tests/kernels`, and of files that are
//! no kernel's.

use proptest::prelude::*;
use queue_trace_common::field;

use super::*;
use crate::kernel::judgement::Judgement;

/// The types of a kernel, shrunk to what is looked up (`examples/shrink-types.rs`).
fn types_of(kernel: &str) -> Types {
    Types::of_file(&path_of(kernel)).unwrap()
}

fn path_of(kernel: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/kernels/{kernel}.btf"))
}

const NEWEST: &str = "7.3-x86_64";

/// Judges bytes as `check --btf` does.
fn judged(bytes: &[u8]) -> Result<Judgement, FileError> {
    file::check(bytes)?;
    let btf = file::open(bytes)?;
    let types = Types::of(btf, PathBuf::from("bytes"));
    Ok(Judgement::of(&types, None))
}

#[test]
fn every_field_of_the_table_is_found() {
    for kernel in [NEWEST, "7.3-aarch64"] {
        let fields = types_of(kernel).fields().unwrap();
        for (field, wanted) in fields.iter().zip(&FIELDS) {
            assert!(field.size > 0, "{kernel}: {} is missing", wanted.path);
        }
    }
}

#[test]
fn fields_have_the_sizes_that_are_read() {
    for kernel in ["5.10-x86_64", NEWEST, "6.12-16k-aarch64"] {
        let fields = types_of(kernel).fields().unwrap();
        for (index, size) in [
            (field::SK_FAMILY, 2),
            (field::SK_PORT, 2),
            (field::SK_STATE, 1),
            (field::SK_ADDR6, 16),
            (field::SK_DEPTH, 4),
            (field::SYN_DEPTH, 4),
            (field::NET_ID, 4),
            (field::SKB_HEAD, 8),
            (field::SKB_NETWORK, 2),
        ] {
            assert_eq!(fields[index].size, size, "{kernel}: {}", FIELDS[index].path);
        }
    }
}

#[test]
fn hooks_that_exist_fit() {
    for kernel in ["5.10-x86_64", "6.1-aarch64", NEWEST] {
        let types = types_of(kernel);
        types.kernel().unwrap();
        for hook in &HOOKS {
            if types.prototype(hook.function).is_some() {
                types.fits(hook).unwrap();
            }
        }
    }
}

#[test]
fn a_kernels_machine_and_options_are_told_by_its_types() {
    let (x86, arm) = (Some(Architecture::X86_64), Some(Architecture::Aarch64));
    for (kernel, architecture, fentry) in [
        ("5.10-x86_64", x86, true),
        ("6.1-x86_64", x86, true),
        (NEWEST, x86, true),
        ("6.1-aarch64", arm, false),
        ("6.12-16k-aarch64", arm, true),
        ("7.3-aarch64", arm, true),
    ] {
        let types = types_of(kernel);
        assert_eq!(types.architecture(), architecture, "{kernel}");
        assert_eq!(types.has_fentry().is_ok(), fentry, "{kernel}");
        types.has_kprobes().unwrap();
        types.has_ring_buffer().unwrap();
    }
}

#[test]
fn missing_things_are_named() {
    let types = types_of(NEWEST);
    assert!(types.locate("sock.no_such_member").is_none());
    assert!(types.locate("no_such_struct.x").is_none());
    assert!(types.prototype("no_such_function").is_none());
    let error = types.enumerator("TCP_NO_SUCH").unwrap_err();
    assert!(error.to_string().contains("TCP_NO_SUCH"));
}

#[test]
fn what_is_no_file_of_types_is_refused() {
    for (path, words) in [
        ("/proc/self/status", "does not begin as BTF does"),
        ("/dev/zero", "not a regular file"),
        ("/", "not a regular file"),
        ("/no/such/file", "No such file"),
    ] {
        let error = Types::of_file(Path::new(path)).err().unwrap();
        assert!(matches!(error, BtfError::Unreadable { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn the_types_of_another_kernel_are_refused_where_the_kernel_shows_its_own() {
    let read = Types::read(Some(&path_of(NEWEST)));
    if Path::new(SYSTEM).exists() {
        let error = read.err().unwrap();
        assert!(matches!(error, BtfError::Another { .. }), "{error}");
    } else {
        read.unwrap();
    }
}

/// Types by hand.
#[derive(Default)]
struct Forged {
    types: Vec<u8>,
    names: Vec<u8>,
    count: u32,
}

const STRUCT: u32 = 4;
const ENUM: u32 = 6;
const ARRAY: u32 = 3;
const POINTER: u32 = 2;
const TYPEDEF: u32 = 8;
const FUNCTION: u32 = 12;
const PROTOTYPE: u32 = 13;

impl Forged {
    /// Adds a type and gives its number. `value`: its size or the type that it leads to.
    fn add(&mut self, name: &str, kind: u32, parts: u32, value: u32, rest: &[u32]) -> u32 {
        let name = self.name(name);
        for word in [name, kind << 24 | parts, value].iter().chain(rest) {
            self.types.extend(word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    fn name(&mut self, name: &str) -> u32 {
        if self.names.is_empty() {
            self.names.push(0);
        }
        if name.is_empty() {
            return 0;
        }
        let at = self.names.len() as u32;
        self.names.extend(name.bytes().chain([0]));
        at
    }

    fn bytes(&self) -> Vec<u8> {
        let (types, names) = (self.types.len() as u32, self.names.len() as u32);
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types, types, names] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&self.types);
        bytes.extend(&self.names);
        bytes
    }
}

/// Nothing fits, and that is all that happens.
fn assert_no_way(forged: &Forged) {
    let judgement = judged(&forged.bytes()).unwrap();
    assert!(judgement.best().is_none());
}

/// Enumerators in an enum without a name and in one that has one, and functions of all names that
/// are looked up, one of them several times.
fn named(in_order: bool) -> Types {
    let mut forged = Forged::default();
    let enums = |names: &[&str], name: &str, forged: &mut Forged| {
        let members = names.iter().zip(7..);
        let members: Vec<_> = members
            .flat_map(|(name, value)| [forged.name(name), value])
            .collect();
        forged.add(name, ENUM, names.len() as u32, 4, &members);
    };
    let mut looked_up: Vec<_> = enumerators().into_iter().collect();
    looked_up.sort_unstable();
    looked_up.retain(|name| *name != marks::RING_BUFFER);
    enums(&looked_up, "", &mut forged);
    let mut names: Vec<_> = names().into_iter().collect();
    names.extend(["aaa", "tcp_check_req", "tcp_check_req", "zzz"].map(str::to_owned));
    names.sort_unstable();
    if !in_order {
        names.reverse();
    }
    for name in names {
        if name == marks::MAP_TYPES {
            enums(&[marks::RING_BUFFER], &name, &mut forged);
        } else {
            forged.add(&name, FUNCTION, 0, 0, &[]);
        }
    }
    let btf = file::open(&forged.bytes()).unwrap();
    Types::of(btf, PathBuf::from("forged"))
}

#[test]
fn types_in_the_order_of_their_names_are_found_as_in_any_other() {
    let sorted = named(true);
    assert_eq!(sorted.first_with_name(), Some(2));
    assert_eq!(sorted.by_name["tcp_check_req"].len(), 3);
    assert!(sorted.by_name.values().all(|ids| !ids.is_empty()));
    assert_eq!(sorted.enumerators.len(), enumerators().len());
    let mut walked = named(true);
    walked.by_name.values_mut().for_each(Vec::clear);
    walked.enumerators.clear();
    walked.walk();
    assert_eq!(sorted.by_name, walked.by_name);
    assert_eq!(sorted.enumerators, walked.enumerators);

    let reversed = named(false);
    assert_eq!(reversed.first_with_name(), None);
    assert_eq!(reversed.by_name["tcp_check_req"].len(), 3);
    assert_eq!(reversed.enumerators, walked.enumerators);
}

#[test]
fn types_that_lead_to_themselves_have_an_end() {
    for kind in [POINTER, TYPEDEF] {
        let mut forged = Forged::default();
        let own = forged.add("sock", kind, 0, 1, &[]);
        let holder = forged.name("__sk_common");
        forged.add("sock", STRUCT, 1, 8, &[holder, own, 0]);
        let argument = forged.name("sk");
        let prototype = forged.add("", PROTOTYPE, 1, own, &[argument, own]);
        forged.add("tcp_check_req", FUNCTION, 0, prototype, &[]);
        assert_no_way(&forged);
    }
}

#[test]
fn structs_inside_themselves_have_an_end() {
    let mut forged = Forged::default();
    forged.add("sock", STRUCT, 2, 8, &[0, 1, 0, 0, 1, 0]);
    let element = forged.name("__sk_common");
    forged.add("net", STRUCT, 1, 8, &[element, 3, 0]);
    forged.add("", ARRAY, 0, 0, &[3, 3, u32::MAX]);
    assert_no_way(&forged);

    // Each holds the next one many times, so that there are more ways than atoms.
    let mut forged = Forged::default();
    for next in 2..60 {
        let members: Vec<_> = (0..50).flat_map(|_| [0, next, 0]).collect();
        forged.add("sock", STRUCT, 50, 8, &members);
    }
    assert_no_way(&forged);
}

#[test]
fn a_tracepoint_without_arguments_is_none() {
    let mut forged = Forged::default();
    let prototype = forged.add("", PROTOTYPE, 0, 0, &[]);
    let pointer = forged.add("", POINTER, 0, prototype, &[]);
    for name in TRACEPOINTS {
        forged.add(&format!("btf_trace_{name}"), TYPEDEF, 0, pointer, &[]);
    }
    assert_no_way(&forged);
}

#[test]
fn names_without_end_are_refused() {
    let mut forged = Forged::default();
    forged.add(&"x".repeat(1 << 20), STRUCT, 0, 8, &[]);
    let error = judged(&forged.bytes()).unwrap_err().to_string();
    assert!(error.contains("longer than any kernel's"), "{error}");

    let mut bytes = forged.bytes();
    *bytes.last_mut().unwrap() = b'x';
    let error = judged(&bytes).unwrap_err().to_string();
    assert!(error.contains("no end"), "{error}");
}

#[test]
fn a_file_that_is_cut_off_is_refused() {
    let whole = std::fs::read(path_of(NEWEST)).unwrap();
    judged(&whole).unwrap();
    for length in (0..whole.len()).step_by(61) {
        assert!(judged(&whole[..length]).is_err(), "{length} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is changed in a file, there is a judgement or an error, and soon.
    #[test]
    fn damaged_types_are_judged_or_refused(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40)
    ) {
        let mut bytes = std::fs::read(path_of(NEWEST)).unwrap();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let _ = judged(&bytes);
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(judged(&bytes).is_err());
    }
}
