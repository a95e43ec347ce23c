//! Reads what `queue-trace check` wrote. Pure; the asking is in `survey`.

/// What it said of one way to attach.
#[derive(Debug, Default, PartialEq)]
pub struct Checked {
    /// What `uname -r` says.
    pub release: String,
    pub hooks: Vec<Hook>,
    pub observable: Vec<String>,
    pub unobservable: Vec<String>,
    pub notes: Vec<String>,
}

/// A function of the kernel that queue-trace may attach to.
#[derive(Debug, PartialEq)]
pub struct Hook {
    pub function: String,
    pub state: State,
}

#[derive(Debug, PartialEq)]
pub enum State {
    /// The kernel's types have it, with this prototype.
    Present { attached: bool, prototype: String },
    /// It is not there, not as expected, or the kernel refused it.
    LeftOut(String),
}

/// Where a line with an indent belongs.
enum Section {
    Hooks,
    Observable,
    Unobservable,
}

/// Reads a report. What it does not know it passes over: a report without hooks or
/// outcomes is for the caller to judge.
pub fn read(text: &str) -> Checked {
    let mut checked = Checked::default();
    let mut section = None;
    for line in text.lines() {
        let Some(entry) = line.strip_prefix("  ") else {
            section = match line {
                "hooks" => Some(Section::Hooks),
                "observable" => Some(Section::Observable),
                "not observable" => Some(Section::Unobservable),
                _ => None,
            };
            if let Some(release) = line.strip_prefix("kernel ") {
                checked.release = release.trim().to_string();
            } else if let Some(note) = line.strip_prefix("note: ") {
                checked.notes.push(note.to_string());
            }
            continue;
        };
        let (name, rest) = entry.split_once(' ').unwrap_or((entry, ""));
        match section {
            Some(Section::Hooks) => checked.hooks.push(Hook {
                function: name.to_string(),
                state: state(rest.trim()),
            }),
            Some(Section::Observable) => checked.observable.push(name.to_string()),
            Some(Section::Unobservable) => checked.unobservable.push(name.to_string()),
            None => {}
        }
    }
    checked
}

fn state(text: &str) -> State {
    let present = |attached, prototype: &str| State::Present {
        attached,
        prototype: prototype.trim().to_string(),
    };
    if let Some(prototype) = text.strip_prefix("not used ") {
        return present(false, prototype);
    }
    match text.split_once(' ') {
        Some(("fentry" | "kprobe", prototype)) => present(true, prototype),
        Some(("present", prototype)) => present(false, prototype),
        _ => {
            let optional = text
                .strip_prefix("- (")
                .and_then(|why| why.strip_suffix(')'));
            State::LeftOut(optional.unwrap_or(text).to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
kernel       6.1.0-56-cloud-amd64
privileges   CAP_SYS_ADMIN
fentry       attached

hooks
  tcp_v4_conn_request            fentry        int (*sock, *sk_buff)
  tcp_check_req                  not used      *sock (*sock, *sk_buff)
  inet_reqsk_alloc               present       *request_sock (*request_sock_ops)
  subflow_v4_conn_request        - (the kernel has no such function)
  tcp_req_err                    REFUSED: not supported

observable
  queued                               The SYN entered the SYN queue
  cookie_sent:always                   tcp_syncookies=2 answers every SYN
not observable
  accepted                             The application took the connection
note: not attached: tcp_req_err: not supported

Only some of the main verdicts are observable.
";

    #[test]
    fn every_section_is_read() {
        let checked = read(REPORT);
        assert_eq!(checked.release, "6.1.0-56-cloud-amd64");
        assert_eq!(checked.observable, ["queued", "cookie_sent:always"]);
        assert_eq!(checked.unobservable, ["accepted"]);
        assert_eq!(checked.notes, ["not attached: tcp_req_err: not supported"]);
    }

    #[test]
    fn a_hook_has_a_prototype_or_a_reason() {
        let present = |attached, prototype: &str| State::Present {
            attached,
            prototype: prototype.into(),
        };
        let left_out = |why: &str| State::LeftOut(why.into());
        let expected = [
            (
                "tcp_v4_conn_request",
                present(true, "int (*sock, *sk_buff)"),
            ),
            ("tcp_check_req", present(false, "*sock (*sock, *sk_buff)")),
            (
                "inet_reqsk_alloc",
                present(false, "*request_sock (*request_sock_ops)"),
            ),
            (
                "subflow_v4_conn_request",
                left_out("the kernel has no such function"),
            ),
            ("tcp_req_err", left_out("REFUSED: not supported")),
        ];
        let expected = expected.map(|(function, state)| Hook {
            function: function.into(),
            state,
        });
        assert_eq!(read(REPORT).hooks, expected);
    }

    #[test]
    fn other_text_holds_nothing() {
        assert_eq!(read("error: no\n  more\n"), Checked::default());
    }
}
