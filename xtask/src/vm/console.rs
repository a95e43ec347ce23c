//! Reads a guest's console: the exit status, and what the kernel complained of.
//! Pure; the machine is elsewhere.

/// What the kernel's own messages start with when something is wrong with it.
const COMPLAINTS: &[&str] = &[
    "WARNING: ",
    "BUG: ",
    "Oops",
    "Kernel panic",
    "general protection fault",
    "UBSAN: ",
    "watchdog: BUG",
    "INFO: task ",
    "rcu: INFO: ",
];

const EXIT: &str = "VM-EXIT rc=";

/// The status that the guest's init printed, unless the guest ended without.
pub fn exit_status(console: &str) -> Option<u8> {
    console
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(EXIT)?.trim().parse().ok())
}

/// The line is the init's, not the command's.
pub fn is_exit_line(line: &str) -> bool {
    line.starts_with(EXIT)
}

/// The first complaint of the kernel, or of its BPF verifier about itself.
pub fn complaint(console: &str) -> Option<&str> {
    console.lines().map(str::trim_end).find(|line| {
        let kernel_says = message(line).is_some_and(|message| {
            COMPLAINTS
                .iter()
                .any(|complaint| message.starts_with(complaint))
        });
        kernel_says || line.contains("verifier bug")
    })
}

/// What follows the time stamp of a kernel message, wherever in the line it
/// starts: a program may not have ended its own line.
fn message(line: &str) -> Option<&str> {
    let (stamp, message) = line.split_once("] ")?;
    let (_, seconds) = stamp.rsplit_once('[')?;
    let (whole, micros) = seconds.trim_start().split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(whole) && digits(micros)).then_some(message)
}

/// How many tests passed and failed, by the last summary of a test program.
pub fn test_counts(console: &str) -> Option<(u32, u32)> {
    let summary = console
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("test result: "))?;
    let count = |what: &str| {
        let words: Vec<_> = summary
            .split([' ', ';', '.'])
            .filter(|word| !word.is_empty())
            .collect();
        words.windows(2).find(|pair| pair[1] == what)?[0]
            .parse()
            .ok()
    };
    Some((count("passed")?, count("failed")?))
}

/// The last `count` lines.
pub fn tail(console: &str, count: usize) -> String {
    let lines: Vec<_> = console.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_exit_line_counts() {
        assert_eq!(exit_status("boot\nVM-EXIT rc=3\n"), Some(3));
        assert_eq!(
            exit_status("VM-EXIT rc=0\nmore\nVM-EXIT rc=101\n"),
            Some(101)
        );
        assert_eq!(exit_status("Kernel panic\n"), None);
        assert_eq!(exit_status("echo VM-EXIT rc=0\n"), None);
    }

    #[test]
    fn the_kernels_complaints_are_found() {
        for line in [
            "[    1.234567] WARNING: CPU: 0 PID: 1 at net/ipv4/tcp.c:1 tcp_x+0x1/0x2",
            "[   12.345678] WARNING: net/ipv4/tcp.c:1 at tcp_x+0x1/0x2, CPU#0: init/1",
            "[    1.234567] BUG: kernel NULL pointer dereference, address: 0",
            "[    1.234567] Oops: 0000 [#1] SMP PTI",
            "test a ... [  100.000001] Kernel panic - not syncing: sysrq triggered crash",
            "verifier bug: REG INVARIANTS VIOLATION",
        ] {
            assert_eq!(complaint(&format!("fine\n{line}\r\nlater\n")), Some(line));
        }
    }

    #[test]
    fn what_others_say_is_no_complaint() {
        for line in [
            "WARNING: a program's own",
            "[info] WARNING: a program's own",
            "[    0.1] Spectre V2 : WARNING: Unprivileged eBPF is enabled",
            "[    3.1] TCP: request_sock_TCP: Possible SYN flooding on port 8080.",
            "test kernel_panic_is_no_word ... ok",
        ] {
            assert_eq!(complaint(line), None, "{line}");
        }
    }

    #[test]
    fn the_last_summary_is_read() {
        let console = "test result: ok. 1 passed; 0 failed; 0 ignored\n\
                       test result: FAILED. 12 passed; 3 failed; 1 ignored; finished in 2.10s\n";
        assert_eq!(test_counts(console), Some((12, 3)));
        assert_eq!(test_counts("test a ... ok\n"), None);
    }

    #[test]
    fn the_tail_is_at_most_what_there_is() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\n", 5), "a");
    }
}
