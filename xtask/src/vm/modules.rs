//! The kernel modules that the tests need, out of a whole kernel package, as an
//! archive for the guest. What a kernel has built in, or not at all, is left out.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::cpio;
use crate::process;

/// With what they depend on. The guest loads them when something asks for them.
#[rustfmt::skip]
const MODULES: &[&str] = &[
    // Interfaces, and what delays or drops on them.
    "veth", "dummy", "tun", "bridge", "ifb",
    "sch_netem", "sch_ingress", "sch_fq", "sch_htb", "cls_bpf", "cls_u32", "cls_matchall",
    "act_mirred", "act_gact",
    // `ss`.
    "inet_diag", "tcp_diag", "udp_diag", "unix_diag", "mptcp_diag", "af_packet_diag",
    // nftables, and the checksum that some kernels load for it.
    "nf_tables", "nf_conntrack", "nf_conntrack_netlink", "nft_counter", "nft_ct", "nft_limit",
    "nft_log", "nft_numgen", "nft_quota", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6",
    "nft_nat", "nft_masq", "nft_redir", "nft_chain_nat", "nft_synproxy", "nft_tproxy",
    "nft_socket", "nft_queue", "crc32c_generic", "crc32c_intel",
];

/// Changes with the list, so that a cache knows an archive of an older list.
pub fn list_id() -> String {
    id_of(&MODULES.join(" "))
}

/// A short name for a list.
pub fn id_of(list: &str) -> String {
    Sha256::digest(list)
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The archive, from `root`/lib/modules/`release`, which it adds index files to.
pub fn archive(root: &Path, release: &str, scratch: &Path) -> Result<Vec<u8>> {
    let all = root.join("lib/modules").join(release);
    depmod(root, release)?;
    let dependencies = all.join("modules.dep");
    let dependencies = fs::read_to_string(&dependencies)
        .with_context(|| format!("cannot read {}", dependencies.display()))?;

    let subset = scratch.join("lib/modules").join(release);
    for path in closure(&dependencies) {
        unpack(&all.join(path), &subset.join(without_compression(path)))?;
    }
    for name in ["modules.builtin", "modules.order"] {
        // Only to quiet depmod: not every package has them.
        let _ = fs::copy(all.join(name), subset.join(name));
    }
    depmod(scratch, release)?;

    let mut archive = cpio::Archive::default();
    pack(&subset, &format!("lib/modules/{release}"), &mut archive)?;
    Ok(archive.finish())
}

/// The paths of the wanted modules, and of all that they need.
fn closure(dependencies: &str) -> BTreeSet<&str> {
    let wanted = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        let name = file.split('.').next().unwrap_or(file).replace('-', "_");
        MODULES.contains(&name.as_str())
    };
    dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(path, _)| wanted(path))
        .flat_map(|(path, needs)| std::iter::once(path).chain(needs.split_whitespace()))
        .collect()
}

fn without_compression(path: &str) -> &str {
    path.trim_end_matches(".xz").trim_end_matches(".zst")
}

fn unpack(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let program = match from.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
            return Ok(());
        }
    };
    let file = fs::File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    process::run(
        Command::new(program)
            .args(["--decompress", "--stdout", "--quiet"])
            .arg(from)
            .stdout(file),
    )
}

fn depmod(root: &Path, release: &str) -> Result<()> {
    // Not in an ordinary user's PATH.
    process::stdout(
        Command::new("/usr/sbin/depmod")
            .arg("--basedir")
            .arg(root)
            .arg(release),
    )?;
    Ok(())
}

fn pack(folder: &Path, name: &str, archive: &mut cpio::Archive) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = format!("{name}/{}", path.file_name().unwrap_or_default().display());
        if path.is_dir() {
            pack(&path, &name, archive)?;
        } else {
            archive.copy(&name, &path, 0o644)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closure_holds_what_is_needed_and_no_more() {
        let dependencies = "\
kernel/drivers/net/veth.ko.xz:
kernel/net/ipv4/tcp_diag.ko.xz: kernel/net/ipv4/inet_diag.ko.xz
kernel/net/ipv4/inet_diag.ko.xz:
kernel/drivers/net/wireguard/wireguard.ko.xz: kernel/crypto/x.ko.xz
";
        let expected = [
            "kernel/drivers/net/veth.ko.xz",
            "kernel/net/ipv4/inet_diag.ko.xz",
            "kernel/net/ipv4/tcp_diag.ko.xz",
        ];
        assert_eq!(
            closure(dependencies).into_iter().collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn the_guest_gets_uncompressed_modules() {
        for name in ["a/veth.ko", "a/veth.ko.xz", "a/veth.ko.zst"] {
            assert_eq!(without_compression(name), "a/veth.ko");
        }
    }
}
