//! Any words as a command line, one to a line: parsed, and what was parsed made into the
//! filters of the kernel side as far as that needs no kernel.
//!
//! `cargo xtask fuzz 600 --target command_line` runs it for ten minutes.

#![no_main]

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use queue_trace::{Cli, kernel::selection};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let args = std::iter::once("queue-trace").chain(text.split('\n'));
    match Cli::try_parse_from(args) {
        Ok(cli) => {
            let _ = cli.trace.check();
            let _ = cli.trace.rotation();
            let filters = &cli.trace.filters;
            let _ = filters.outcomes();
            for networks in [&filters.listeners.addrs, &filters.clients] {
                // At most what is left of all of IPv6 without IPv4, for each.
                let prefixes = selection::prefixes(networks);
                assert!(prefixes.len() <= 96 * networks.len());
            }
        }
        Err(error) => drop(error.to_string()),
    }
});
