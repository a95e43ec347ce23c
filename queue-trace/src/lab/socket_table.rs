//! What the kernel's table of TCP sockets says of a listener's half-open requests.

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result};

use crate::lab::Family;

/// How many half-open requests (SYN_RECV) the port of `listener` has, in the
/// calling thread's namespace.
pub fn half_open(listener: SocketAddr) -> Result<usize> {
    let path = match Family::of(listener) {
        Family::V4 => "/proc/thread-self/net/tcp",
        Family::V6 => "/proc/thread-self/net/tcp6",
    };
    let table = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(count_half_open(&table, listener.port()))
}

fn count_half_open(table: &str, port: u16) -> usize {
    const SYN_RECV: &str = "03";
    let port = format!(":{port:04X}");
    let is_half_open = |line: &&str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next();
        let state = fields.nth(1);
        local.is_some_and(|local| local.ends_with(&port)) && state == Some(SYN_RECV)
    };
    table.lines().filter(is_half_open).count()
}

#[cfg(test)]
mod tests {
    use super::count_half_open;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:1F90 016433C6:EE48 03 00000000:00000000 01:00000064 00000000     0        0 0 1
   2: 0100007F:1F91 016433C6:EE49 03 00000000:00000000 01:00000064 00000000     0        0 0 1
   3: 0100007F:1F90 016433C6:EE4A 01 00000000:00000000 00:00000000 00000000     0        0 0 1
";

    #[test]
    fn counts_the_requests_of_one_port() {
        assert_eq!(count_half_open(TABLE, 8080), 1);
        assert_eq!(count_half_open(TABLE, 8082), 0);
    }
}
