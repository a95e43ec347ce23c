//! What tells a series of a listener from others: its address, its port, and the words of
//! its owner that the user allows. Never a client's address, a process number, an inode or
//! a namespace: their number has no bound.

use std::{fmt::Write as _, ops::RangeInclusive, str::FromStr};

use super::ports::port_range;
use crate::{listeners::pods::PodNames, model::snapshot::Snapshot};

/// A word of the owner that may be a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerLabel {
    /// The systemd unit.
    SystemdUnit,
    /// The namespace of the pod.
    PodNamespace,
    /// The name of the pod.
    PodName,
    /// The name of the container in the pod.
    PodContainer,
    /// The uid of the pod.
    PodUid,
    /// The id of the container.
    ContainerId,
    /// The name of the process.
    Executable,
}

impl OwnerLabel {
    /// All of them, in the order in which they stand in a series.
    pub const ALL: [Self; 7] = [
        Self::SystemdUnit,
        Self::PodNamespace,
        Self::PodName,
        Self::PodContainer,
        Self::PodUid,
        Self::ContainerId,
        Self::Executable,
    ];

    /// Those that are labels unless the user says otherwise.
    pub const DEFAULT: [Self; 5] = [
        Self::SystemdUnit,
        Self::PodNamespace,
        Self::PodName,
        Self::PodContainer,
        Self::Executable,
    ];

    /// The name in Prometheus and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SystemdUnit => "systemd_unit",
            Self::PodNamespace => "k8s_namespace_name",
            Self::PodName => "k8s_pod_name",
            Self::PodContainer => "k8s_container_name",
            Self::PodUid => "k8s_pod_uid",
            Self::ContainerId => "container_id",
            Self::Executable => "process_executable_name",
        }
    }
}

impl FromStr for OwnerLabel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|label| label.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is not a label that the agent has: none, or some of {names}")
        })
    }
}

/// The labels that are allowed: `none`, or names separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed(Vec<OwnerLabel>);

impl Default for Allowed {
    fn default() -> Self {
        Self(OwnerLabel::DEFAULT.to_vec())
    }
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let mut labels: Vec<OwnerLabel> =
            text.split(',').map(str::parse).collect::<Result<_, _>>()?;
        labels.sort_unstable();
        labels.dedup();
        Ok(Self(labels))
    }
}

impl Allowed {
    fn has(&self, label: OwnerLabel) -> bool {
        self.0.contains(&label)
    }
}

/// Ports that the kernel gives to whoever asks for any: a listener on one of them is
/// somebody's for a moment, so these ports are one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ephemeral(Option<RangeInclusive<u16>>);

impl Ephemeral {
    /// The range of the machine, or the kernel's default where it cannot be read.
    #[must_use]
    pub fn of_machine() -> Self {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let range = text.ok().and_then(|text| {
            let mut words = text.split_whitespace().map(str::parse);
            Some(words.next()?.ok()?..=words.next()?.ok()?)
        });
        Self(Some(range.unwrap_or(32768..=60999)))
    }

    /// This range.
    #[must_use]
    pub fn of(range: RangeInclusive<u16>) -> Self {
        Self(Some(range))
    }

    /// No port.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether a port is one of them.
    #[must_use]
    pub fn has(&self, port: u16) -> bool {
        self.0.as_ref().is_some_and(|range| range.contains(&port))
    }
}

impl FromStr for Ephemeral {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::none()),
            range => port_range(range).map(Self::of),
        }
    }
}

/// Names and values.
pub type LabelWords = Vec<(&'static str, String)>;

/// The longest value of a label, bytes.
pub const LONGEST: usize = 128;

/// The value of a label: what cannot be shown is escaped, what is too long is cut.
#[must_use]
pub fn clean(value: &str) -> String {
    let mut clean = String::with_capacity(value.len());
    for c in value.chars() {
        let before = clean.len();
        if is_shown(c) {
            clean.push(c);
        } else {
            // Writing to a string does not fail.
            let _ = write!(clean, "\\u{{{:x}}}", u32::from(c));
        }
        if clean.len() > LONGEST {
            clean.truncate(before);
            break;
        }
    }
    clean
}

/// Control characters, and those that change the direction of what follows, are not.
fn is_shown(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Whose a listener is, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The systemd unit.
    pub unit: Option<String>,
    /// The pod's uid.
    pub pod_uid: Option<String>,
    /// The pod's namespace.
    pub pod_namespace: Option<String>,
    /// The pod's name.
    pub pod_name: Option<String>,
    /// The container's name in the pod.
    pub pod_container: Option<String>,
    /// The container's id.
    pub container: Option<String>,
    /// The process's name.
    pub executable: Option<String>,
}

impl Owner {
    /// What a snapshot says, and the names that belong to it.
    #[must_use]
    pub fn of(snapshot: &Snapshot, pods: &mut PodNames) -> Self {
        let names = pods.find(snapshot.pod.as_deref(), snapshot.container.as_deref());
        let clean = |text: &Option<String>| text.as_deref().map(clean);
        let first = snapshot.processes.iter().flatten().next();
        Self {
            unit: clean(&snapshot.unit),
            pod_uid: clean(&snapshot.pod),
            pod_namespace: names.namespace.as_deref().map(self::clean),
            pod_name: names.pod.as_deref().map(self::clean),
            pod_container: names.container.as_deref().map(self::clean),
            container: clean(&snapshot.container),
            executable: first.map(|process| self::clean(&process.comm)),
        }
    }

    fn word(&self, label: OwnerLabel) -> Option<&String> {
        match label {
            OwnerLabel::SystemdUnit => self.unit.as_ref(),
            OwnerLabel::PodNamespace => self.pod_namespace.as_ref(),
            OwnerLabel::PodName => self.pod_name.as_ref(),
            OwnerLabel::PodContainer => self.pod_container.as_ref(),
            OwnerLabel::PodUid => self.pod_uid.as_ref(),
            OwnerLabel::ContainerId => self.container.as_ref(),
            OwnerLabel::Executable => self.executable.as_ref(),
        }
    }
}

/// The word for ports of the ephemeral range.
pub const EPHEMERAL: &str = "ephemeral";

/// The labels of a listener's series. Two listeners with the same labels are one series.
#[must_use]
pub fn labels_of(
    snapshot: &Snapshot,
    owner: &Owner,
    allowed: &Allowed,
    ephemeral: &Ephemeral,
) -> LabelWords {
    let mut words = LabelWords::new();
    if let Some(addr) = snapshot.listener.addr {
        words.push(("network_local_address", addr.to_string()));
    }
    let port = snapshot.listener.port;
    let port = if ephemeral.has(port) {
        EPHEMERAL.to_owned()
    } else {
        port.to_string()
    };
    words.push(("network_local_port", port));
    for label in OwnerLabel::ALL {
        if let Some(word) = owner.word(label).filter(|_| allowed.has(label)) {
            words.push((label.name(), word.clone()));
        }
    }
    words
}

/// The labels of the series of those for which there is no place.
#[must_use]
pub fn overflow() -> LabelWords {
    vec![("overflow", "true".to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_at_a_character_and_escaped() {
        assert_eq!(clean("nginx"), "nginx");
        assert_eq!(
            clean("a\u{1b}[31m\n\u{202e}b"),
            "a\\u{1b}[31m\\u{a}\\u{202e}b"
        );
        let long = clean(&"ü".repeat(100));
        assert_eq!(long.chars().count(), 64);
        assert!(clean(&"\u{7}".repeat(100)).len() <= LONGEST);
    }

    #[test]
    fn only_labels_that_exist_are_allowed() {
        assert_eq!("none".parse(), Ok(Allowed(Vec::new())));
        let parsed: Allowed = "process_executable_name,systemd_unit".parse().unwrap();
        assert_eq!(parsed.0, [OwnerLabel::SystemdUnit, OwnerLabel::Executable]);
        assert!(
            "pid"
                .parse::<Allowed>()
                .unwrap_err()
                .contains("systemd_unit")
        );
    }
}
