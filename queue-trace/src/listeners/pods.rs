//! Names of pods and containers without asking the Kubernetes API: the kubelet makes files
//! and folders named after them, for every runtime, in `/var/log`.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::model::snapshot::Snapshot;

/// The names that belong to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Of the pod's namespace.
    pub namespace: Option<String>,
    /// Of the pod.
    pub pod: Option<String>,
    /// Of the container.
    pub container: Option<String>,
}

/// How long a name that was not found is not looked for again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Names that are remembered: more than a machine has pods.
const MOST: usize = 4096;

/// Finds names, and remembers them.
#[derive(Debug)]
pub struct PodNames {
    root: PathBuf,
    by_container: HashMap<String, Names>,
    by_pod: HashMap<String, Names>,
    read: Option<Instant>,
}

impl PodNames {
    /// Looks where the kubelet of this machine makes them.
    #[must_use]
    pub fn here() -> Self {
        Self::new(Path::new("/var/log"))
    }

    /// Looks in `root`, which is `/var/log`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            by_container: HashMap::new(),
            by_pod: HashMap::new(),
            read: None,
        }
    }

    /// The names of a pod's container, as far as they can be found.
    pub fn find(&mut self, pod: Option<&str>, container: Option<&str>) -> Names {
        if pod.is_none() && container.is_none() {
            return Names::default();
        }
        if let Some(names) = self.known(pod, container) {
            return names;
        }
        // A machine without Kubernetes has containers too: its folders are listed seldom.
        if self.read.is_some_and(|read| read.elapsed() < PATIENCE) {
            return Names::default();
        }
        self.list();
        self.known(pod, container).unwrap_or_default()
    }

    fn known(&self, pod: Option<&str>, container: Option<&str>) -> Option<Names> {
        let named = container.and_then(|id| self.by_container.get(id));
        named.or_else(|| self.by_pod.get(pod?)).cloned()
    }

    fn list(&mut self) {
        self.read = Some(Instant::now());
        self.by_container.clear();
        self.by_pod.clear();
        for name in entries(&self.root.join("pods")) {
            if let Some((uid, names)) = of_folder(&name)
                && self.by_pod.len() < MOST
            {
                self.by_pod.insert(uid, names);
            }
        }
        for name in entries(&self.root.join("containers")) {
            if let Some((id, names)) = of_link(&name)
                && self.by_container.len() < MOST
            {
                self.by_container.insert(id, names);
            }
        }
    }
}

/// Notes on listeners the names of the pods that they are in.
pub fn name_pods(rows: &mut [Snapshot], names: &mut PodNames) {
    for row in rows {
        if row.pod.is_none() || row.pod_name.is_some() {
            continue;
        }
        let found = names.find(row.pod.as_deref(), row.container.as_deref());
        if let (Some(namespace), Some(pod)) = (found.namespace, found.pod) {
            row.pod_name = Some(format!("{namespace}/{pod}"));
        }
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = String> {
    let inside = fs::read_dir(folder).into_iter().flatten().flatten();
    inside.filter_map(|entry| entry.file_name().into_string().ok())
}

/// `<namespace>_<pod>_<uid>` in `/var/log/pods`. Neither name may have an underscore.
fn of_folder(name: &str) -> Option<(String, Names)> {
    let mut parts = name.split('_');
    let (namespace, pod, uid) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then(|| {
        let names = Names {
            namespace: Some(namespace.to_owned()),
            pod: Some(pod.to_owned()),
            container: None,
        };
        (uid.to_owned(), names)
    })
}

/// `<pod>_<namespace>_<container>-<id>.log` in `/var/log/containers`.
fn of_link(name: &str) -> Option<(String, Names)> {
    let mut parts = name.strip_suffix(".log")?.split('_');
    let (pod, namespace, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (container, id) = rest.rsplit_once('-')?;
    let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    (is_id && parts.next().is_none()).then(|| {
        let names = Names {
            namespace: Some(namespace.to_owned()),
            pod: Some(pod.to_owned()),
            container: Some(container.to_owned()),
        };
        (id.to_owned(), names)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3601745b3bd54d9780436faa5f0e4f7203601745b3bd54d9780436faa5f0e4f7";

    #[test]
    fn names_come_from_what_the_kubelet_makes() {
        let root = std::env::temp_dir().join(format!("queue-trace-pods-{}", std::process::id()));
        fs::create_dir_all(root.join("containers")).unwrap();
        fs::create_dir_all(root.join("pods/shop_web-7d9f_11-22/nginx")).unwrap();
        fs::create_dir_all(root.join("pods/not a pod")).unwrap();
        let link = format!("containers/web-7d9f_shop_front-end-{ID}.log");
        fs::write(root.join(link), "").unwrap();
        fs::write(root.join("containers/other.log"), "").unwrap();
        let mut names = PodNames::new(&root);
        let full = names.find(Some("11-22"), Some(ID));
        assert_eq!(full.container.as_deref(), Some("front-end"));
        assert_eq!(full.namespace.as_deref(), Some("shop"));
        assert_eq!(full.pod.as_deref(), Some("web-7d9f"));
        let pod = names.find(Some("11-22"), Some("other"));
        assert_eq!(
            (pod.pod.as_deref(), pod.container),
            (Some("web-7d9f"), None)
        );
        assert_eq!(names.find(Some("33-44"), None), Names::default());
        assert_eq!(names.find(None, None), Names::default());
        let row = |pod: Option<&str>| Snapshot {
            pod: pod.map(str::to_owned),
            ..Snapshot::default()
        };
        let mut rows = [row(Some("11-22")), row(Some("33-44")), row(None)];
        name_pods(&mut rows, &mut names);
        let named = rows.map(|row| row.pod_name);
        assert_eq!(named, [Some("shop/web-7d9f".to_owned()), None, None]);
        fs::remove_dir_all(root).unwrap();
    }
}
