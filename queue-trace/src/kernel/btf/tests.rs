//! Tests of what is read from types.
use super::*;

// Each machine that runs the tests has a kernel with BTF; one that has not
// fails here rather than passing without having compared anything.
fn types() -> Types {
    Types::read(None).unwrap()
}

#[test]
fn every_field_of_the_table_is_found() {
    let fields = types().fields().unwrap();
    for (field, wanted) in fields.iter().zip(&FIELDS) {
        assert!(field.size > 0, "{} is missing", wanted.path);
    }
}

#[test]
fn fields_have_the_sizes_that_are_read() {
    let fields = types().fields().unwrap();
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
        assert_eq!(fields[index].size, size, "{}", FIELDS[index].path);
    }
}

#[test]
fn counters_are_neighbours() {
    types().kernel().unwrap();
}

#[test]
fn hooks_that_exist_fit() {
    let types = types();
    for hook in &HOOKS {
        if types.prototype(hook.function).is_some() {
            types.fits(hook).unwrap();
        }
    }
}

#[test]
fn missing_things_are_named() {
    let types = types();
    assert!(types.locate("sock.no_such_member").is_none());
    assert!(types.locate("no_such_struct.x").is_none());
    assert!(types.prototype("no_such_function").is_none());
    let error = types.enumerator("TCP_NO_SUCH").unwrap_err();
    assert!(error.to_string().contains("TCP_NO_SUCH"));
}

#[test]
fn a_file_that_is_not_btf_is_refused() {
    let error = Types::read(Some(Path::new("/proc/self/status")))
        .err()
        .unwrap();
    assert!(matches!(error, BtfError::Unreadable { .. }), "{error}");
}
