//! What the agent is told: the command line, and a file that is read again on SIGHUP. The
//! command line goes before the file.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Deserialize;

pub use super::ports::port_range;
use super::{
    labels::{Allowed, Ephemeral},
    recorder::{Bounds, Keep},
    series::Limits,
};

/// The file of `--config`, TOML. Every key has the name and the form of its option.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct File {
    /// Labels of owners.
    pub labels: Option<String>,
    /// Series of listeners.
    pub max_listeners: Option<usize>,
    /// Ports that are one label.
    pub ephemeral_ports: Option<String>,
    /// Time before an incident.
    pub before: Option<String>,
    /// Time after it.
    pub after: Option<String>,
    /// Bytes of an incident recording.
    pub incident_size: Option<String>,
    /// Recordings of a listener in a day.
    pub incidents_a_day: Option<u32>,
    /// Bytes of all.
    pub keep: Option<String>,
    /// Age of the oldest.
    pub keep_for: Option<String>,
}

impl File {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be read, or says what is not understood.
    pub fn read(path: &Path) -> Result<Self> {
        let cannot = || format!("--config {}", path.display());
        let text = std::fs::read_to_string(path).with_context(cannot)?;
        toml::from_str(&text).with_context(cannot)
    }
}

/// What the command line says of the same; `None`: nothing.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// Each as in [`File`].
    pub labels: Option<Allowed>,
    /// Series of listeners.
    pub max_listeners: Option<usize>,
    /// Ports that are one label; the inner `None`: none are.
    pub ephemeral_ports: Option<Ephemeral>,
    /// Time before an incident.
    pub before: Option<Duration>,
    /// Time after it.
    pub after: Option<Duration>,
    /// Bytes of an incident recording.
    pub incident_size: Option<u64>,
    /// Recordings of a listener in a day.
    pub incidents_a_day: Option<u32>,
    /// Bytes of all.
    pub keep: Option<u64>,
    /// Age of the oldest.
    pub keep_for: Option<Duration>,
}

/// What may change while it runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How series are made.
    pub limits: Limits,
    /// What the recorder keeps.
    pub bounds: Bounds,
}

/// Series of listeners, where nobody says how many.
pub const LISTENERS: usize = 256;
/// Bytes of memory of the recorder.
const MEMORY: usize = 8 << 20;

impl Settings {
    /// From the command line and the file.
    ///
    /// # Errors
    /// If a value of the file is not understood.
    pub fn of(said: &Said, config: Option<&Path>) -> Result<Self> {
        let file = match config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let named = |key: &'static str| move |error: String| anyhow::anyhow!("{key}: {error}");
        let allowed = match (&said.labels, &file.labels) {
            (Some(said), _) => said.clone(),
            (None, Some(text)) => text.parse().map_err(named("labels"))?,
            (None, None) => Allowed::default(),
        };
        let ephemeral = match (&said.ephemeral_ports, &file.ephemeral_ports) {
            (Some(said), _) => said.clone(),
            (None, Some(text)) => text.parse().map_err(named("ephemeral-ports"))?,
            (None, None) => Ephemeral::of_machine(),
        };
        let time =
            |said: Option<Duration>, file: &Option<String>, key, other: u64| match (said, file) {
                (Some(said), _) => Ok(said),
                (None, Some(text)) => duration(text).map_err(named(key)),
                (None, None) => Ok(Duration::from_secs(other)),
            };
        let bytes = |said: Option<u64>, file: &Option<String>, key, other: u64| match (said, file) {
            (Some(said), _) => Ok(said),
            (None, Some(text)) => size(text).map_err(named(key)),
            (None, None) => Ok(other),
        };
        Ok(Self {
            limits: Limits {
                allowed,
                ephemeral,
                listeners: said
                    .max_listeners
                    .or(file.max_listeners)
                    .unwrap_or(LISTENERS),
            },
            bounds: Bounds {
                before: time(said.before, &file.before, "before", 60)?,
                memory: MEMORY,
                after: time(said.after, &file.after, "after", 10)?,
                size: bytes(
                    said.incident_size,
                    &file.incident_size,
                    "incident-size",
                    64 << 20,
                )?,
                a_day: said.incidents_a_day.or(file.incidents_a_day).unwrap_or(10),
                keep: Keep {
                    bytes: bytes(said.keep, &file.keep, "keep", 1 << 30)?,
                    age: time(said.keep_for, &file.keep_for, "keep-for", 30 * 24 * 3600)?,
                },
            },
        })
    }
}

/// A time such as `60s`.
///
/// # Errors
/// If it is none.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is not a time like 60s: {error}"))
}

/// A size such as `64M`.
///
/// # Errors
/// If it is none.
pub fn size(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => 0,
    };
    let size = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit));
    size.filter(|size| *size > 0)
        .ok_or_else(|| format!("{text:?} is not a size like 64M"))
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAt {
    /// TCP.
    Tcp(std::net::SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl Default for ListenAt {
    fn default() -> Self {
        Self::Tcp(([127, 0, 0, 1], 9801).into())
    }
}

impl std::str::FromStr for ListenAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: without a path".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                format!(
                    "{text:?} is neither an address with a port, like 127.0.0.1:9801, nor unix:PATH"
                )
            }),
        }
    }
}

impl std::fmt::Display for ListenAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_file() {
        let path =
            std::env::temp_dir().join(format!("queue-trace-config-{}.toml", std::process::id()));
        std::fs::write(
            &path,
            "labels = \"none\"\nmax-listeners = 7\nkeep = \"5M\"\nbefore = \"2m\"\n",
        )
        .unwrap();
        let said = Said {
            max_listeners: Some(9),
            ..Said::default()
        };
        let settings = Settings::of(&said, Some(&path)).unwrap();
        assert_eq!(settings.limits.listeners, 9);
        assert_eq!(settings.limits.allowed, "none".parse().unwrap());
        assert_eq!(settings.bounds.keep.bytes, 5 << 20);
        assert_eq!(settings.bounds.before, Duration::from_secs(120));
        assert_eq!(settings.bounds.a_day, 10);
        std::fs::write(&path, "listenres = 7\n").unwrap();
        let error = Settings::of(&said, Some(&path)).unwrap_err();
        assert!(format!("{error:#}").contains("listenres"), "{error:#}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn values() {
        assert_eq!(size("1G"), Ok(1 << 30));
        assert!(size("1 G").is_err() && size("").is_err() && size("99999999999T").is_err());
        assert!("localhost:80".parse::<ListenAt>().is_err());
        assert_eq!("unix:/run/x".parse(), Ok(ListenAt::Unix("/run/x".into())));
        assert_eq!(port_range("1-2"), Ok(1..=2));
        assert!(port_range("2-1").is_err());
    }
}
