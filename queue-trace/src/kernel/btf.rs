//! What the running kernel's BTF says: where fields are, how many arguments functions
//! take, what enumerators are worth. Nothing here touches the kernel; it reads the
//! file `/sys/kernel/btf/vmlinux` or the one given with `--btf`.

use std::{
    collections::{HashMap, HashSet},
    io::Write as _,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use btf_rs::{Backend, Btf, BtfType, Type};
use queue_trace_common::{
    counter::{COUNTERS, GROUPS},
    field::{self, FIELDS, Field},
    hook::{self, HOOKS, Hook},
    settings::{self, CAST, TYPED},
};
use rustix::fs::{MemfdFlags, memfd_create};

/// Where kernels that have BTF show it.
pub const SYSTEM: &str = "/sys/kernel/btf/vmlinux";

/// Why the kernel's types could not be had, or do not fit.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// There is no such file.
    #[error(
        "this kernel shows no type information at {SYSTEM} (it was built without \
         CONFIG_DEBUG_INFO_BTF); give it with --btf FILE: extract it from the distribution's \
         debug vmlinux (`pahole --btf_encode_detached FILE vmlinux`), or take the file made for \
         exactly this kernel release from a public BTF archive"
    )]
    Missing,
    /// The file is there and cannot be read as BTF.
    #[error("cannot read BTF from {path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        why: btf_rs::Error,
    },
    /// A field without which nothing works.
    #[error("this kernel has no field {0}: its layout is not one that queue-trace knows")]
    NoField(&'static str),
    /// A field further from its struct's start than the table can say.
    #[error("the field {0} is at an offset beyond 64 KiB, which queue-trace cannot address")]
    FarField(&'static str),
    /// An enumerator without which nothing works.
    #[error("this kernel's BTF has no enumerator {0}")]
    NoEnumerator(&'static str),
    /// Counters that are read together and are not neighbours.
    #[error("this kernel does not keep {0} next to {1}, which queue-trace reads together")]
    Apart(&'static str, &'static str),
}

/// The prototype of a function, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prototype {
    /// The types of the arguments; `*name` for a pointer.
    pub arguments: Vec<String>,
    /// The type returned.
    pub returns: String,
}

impl std::fmt::Display for Prototype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.returns, self.arguments.join(", "))
    }
}

/// The types of one kernel.
pub struct Types {
    btf: Btf,
    path: PathBuf,
    enumerators: HashMap<String, u64>,
    /// The numbers of the types that are often asked for by name: for any other the reader
    /// goes through all of the kernel's.
    by_name: HashMap<String, Vec<u32>>,
}

impl Types {
    /// Reads the running kernel's types, or those of a file.
    ///
    /// # Errors
    /// [`BtfError::Missing`] if the kernel shows none, [`BtfError::Unreadable`] if the
    /// file is not BTF.
    pub fn read(file: Option<&Path>) -> Result<Self, BtfError> {
        let path = file.unwrap_or(Path::new(SYSTEM));
        if file.is_none() && !path.exists() {
            return Err(BtfError::Missing);
        }
        let btf = open(path).map_err(|why| BtfError::Unreadable {
            path: path.to_owned(),
            why,
        })?;
        let mut types = Self {
            btf,
            path: path.to_owned(),
            enumerators: HashMap::new(),
            by_name: HashMap::new(),
        };
        types.index();
        Ok(types)
    }

    /// The file that they were read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether they are the running kernel's own, so that their numbers are its.
    #[must_use]
    pub fn are_the_kernels(&self) -> bool {
        self.path == Path::new(SYSTEM)
    }

    /// Goes through all types once, for those that are used somewhere: by name, and the
    /// enumerators, wherever they are declared (the kernel's counters and states are in
    /// anonymous enums, which have no name to look up).
    fn index(&mut self) {
        let is_enumerator = |name: &str| name.starts_with("LINUX_MIB_") || name.starts_with("TCP_");
        let names = names();
        let (first, last) = self.btf.base().type_id_range();
        for id in first..=last {
            // What was wanted and cannot be decoded will be missed by name.
            let Ok(kind) = self.btf.resolve_type_by_id(id) else {
                continue;
            };
            if let Type::Enum(kind) = &kind {
                for member in &kind.members {
                    if let Ok(name) = self.btf.resolve_name(member)
                        && is_enumerator(&name)
                    {
                        let value = u64::from(member.val());
                        self.enumerators.entry(name).or_insert(value);
                    }
                }
            }
            if let Some(named) = kind.as_btf_type()
                && let Ok(name) = self.btf.resolve_name(named)
                && names.contains(name.as_str())
            {
                self.by_name.entry(name).or_default().push(id);
            }
        }
    }

    /// The types of a name, each with its number.
    fn named(&self, name: &str) -> impl Iterator<Item = (u32, Type)> {
        let ids = match self.by_name.get(name) {
            Some(ids) => ids.clone(),
            None => self.btf.resolve_ids_by_name(name).unwrap_or_default(),
        };
        ids.into_iter()
            .filter_map(|id| Some((id, self.btf.resolve_type_by_id(id).ok()?)))
    }

    /// The value of an enumerator.
    ///
    /// # Errors
    /// [`BtfError::NoEnumerator`].
    pub fn enumerator(&self, name: &'static str) -> Result<u64, BtfError> {
        self.enumerators
            .get(name)
            .copied()
            .ok_or(BtfError::NoEnumerator(name))
    }

    /// A function's prototype; `None` if the kernel's BTF does not have it.
    #[must_use]
    pub fn prototype(&self, function: &str) -> Option<Prototype> {
        let function = self.named(function).find_map(|(_, kind)| match kind {
            Type::Func(function) => Some(function),
            _ => None,
        })?;
        self.prototype_of(&function)
    }

    /// The prototype of a tracepoint, without the first argument, which is the
    /// tracer's own.
    #[must_use]
    pub fn tracepoint(&self, name: &str) -> Option<Prototype> {
        let pointer =
            self.named(&format!("{TRACEPOINT}{name}"))
                .find_map(|(_, kind)| match kind {
                    Type::Typedef(alias) => self.btf.resolve_chained_type(&alias).ok(),
                    _ => None,
                })?;
        let mut prototype = self.prototype_of(pointer.as_btf_type()?)?;
        prototype.arguments.remove(0);
        Some(prototype)
    }

    /// A function's number among the types; `None` if the kernel's BTF does not have it.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u32> {
        self.named(name)
            .find_map(|(id, kind)| matches!(kind, Type::Func(_)).then_some(id))
    }

    /// The number of the function that gives an address its type; `None` where the running
    /// kernel has none. The types of another file have other numbers.
    #[must_use]
    pub fn cast(&self) -> Option<u32> {
        self.are_the_kernels()
            .then(|| self.function(CAST))
            .flatten()
    }

    /// A struct's number among the types.
    fn structure(&self, name: &str) -> Option<u32> {
        self.named(name)
            .find_map(|(id, kind)| matches!(kind, Type::Struct(_)).then_some(id))
    }

    fn prototype_of(&self, owner: &dyn BtfType) -> Option<Prototype> {
        let Type::FuncProto(prototype) = self.btf.resolve_chained_type(owner).ok()? else {
            return None;
        };
        Some(Prototype {
            arguments: prototype
                .parameters
                .iter()
                .map(|parameter| self.type_name(parameter.get_type_id().unwrap_or(0)))
                .collect(),
            returns: self.type_name(prototype.return_type_id()),
        })
    }

    /// The name of a type without qualifiers; `*name` for a pointer to it.
    fn type_name(&self, id: u32) -> String {
        if id == 0 {
            return "void".to_owned();
        }
        let Ok(kind) = self.btf.resolve_type_by_id(id) else {
            return "?".to_owned();
        };
        let Some(as_type) = kind.as_btf_type() else {
            return "function".to_owned();
        };
        let inner = as_type.get_type_id().unwrap_or(0);
        match &kind {
            Type::Ptr(_) => format!("*{}", self.type_name(inner)),
            Type::Const(_) | Type::Volatile(_) | Type::Restrict(_) | Type::TypeTag(_) => {
                self.type_name(inner)
            }
            _ => self
                .btf
                .resolve_name(as_type)
                .unwrap_or_else(|_| "?".to_owned()),
        }
    }

    /// Where a field is, in bytes, and its size; `None` if this kernel does not have it.
    #[must_use]
    pub fn locate(&self, path: &str) -> Option<(usize, usize)> {
        let mut names = path.split('.');
        let holder = names.next()?;
        let mut kind = self
            .named(holder)
            .map(|(_, kind)| kind)
            .find(|kind| matches!(kind, Type::Struct(_) | Type::Union(_)))?;
        let mut bits = 0;
        let mut bit_field = None;
        for name in names {
            let (at, next, width) = self.member(&kind, name)?;
            bits += at;
            kind = next;
            bit_field = width;
        }
        let size = match bit_field {
            Some(width) => (bits % 8 + width).div_ceil(8),
            None => self.size(&kind)?,
        };
        Some((bits / 8, size))
    }

    /// A member of a struct, also inside its anonymous members: where it is in bits,
    /// its type, and its width if it is a bit-field.
    fn member(&self, holder: &Type, name: &str) -> Option<(usize, Type, Option<usize>)> {
        let (Type::Struct(holder) | Type::Union(holder)) = holder else {
            return None;
        };
        for member in &holder.members {
            let found = self.btf.resolve_name(member).unwrap_or_default();
            let at = member.bit_offset() as usize;
            if found == name {
                let kind = self.unqualified(self.btf.resolve_chained_type(member).ok()?)?;
                let width = member
                    .bitfield_size()
                    .filter(|width| *width != 0)
                    .map(|width| width as usize);
                return Some((at, kind, width));
            }
            if found.is_empty() {
                let kind = self.unqualified(self.btf.resolve_chained_type(member).ok()?)?;
                if let Some((inside, kind, width)) = self.member(&kind, name) {
                    return Some((at + inside, kind, width));
                }
            }
        }
        None
    }

    /// A type without its typedefs and qualifiers.
    fn unqualified(&self, kind: Type) -> Option<Type> {
        match &kind {
            Type::Typedef(_)
            | Type::Const(_)
            | Type::Volatile(_)
            | Type::Restrict(_)
            | Type::TypeTag(_) => {
                let next = self.btf.resolve_chained_type(kind.as_btf_type()?).ok()?;
                self.unqualified(next)
            }
            _ => Some(kind),
        }
    }

    fn size(&self, kind: &Type) -> Option<usize> {
        match kind {
            Type::Int(int) => Some(int.size()),
            Type::Ptr(_) => Some(size_of::<u64>()),
            Type::Struct(holder) | Type::Union(holder) => Some(holder.size()),
            Type::Enum(kind) => Some(kind.size()),
            Type::Enum64(kind) => Some(kind.size()),
            Type::Array(array) => {
                let element = self.unqualified(self.btf.resolve_chained_type(array).ok()?)?;
                // A flexible array counts as one element: enough to say it is there.
                Some(self.size(&element)? * array.len().max(1))
            }
            _ => None,
        }
    }

    /// The table of fields for this kernel. A field that it does not have, and that
    /// is not needed by all, is left at size 0.
    ///
    /// # Errors
    /// [`BtfError::NoField`], [`BtfError::FarField`].
    pub fn fields(&self) -> Result<[Field; field::COUNT], BtfError> {
        let mut fields = [Field::default(); field::COUNT];
        for (place, wanted) in fields.iter_mut().zip(&FIELDS) {
            match self.locate(wanted.path) {
                Some((offset, size)) => {
                    let far = |_| BtfError::FarField(wanted.path);
                    *place = Field {
                        offset: u16::try_from(offset).map_err(far)?,
                        size: u16::try_from(size).map_err(far)?,
                    };
                }
                None if wanted.without.is_none() => return Err(BtfError::NoField(wanted.path)),
                None => {}
            }
        }
        Ok(fields)
    }

    /// What else the kernel side must know of this kernel; nothing attached yet.
    ///
    /// # Errors
    /// [`BtfError::NoEnumerator`], [`BtfError::Apart`].
    pub fn kernel(&self) -> Result<settings::Kernel, BtfError> {
        let mut kernel = settings::Kernel::default();
        for (place, (first, count)) in kernel.counters.iter_mut().zip(GROUPS) {
            let base = self.enumerator(COUNTERS[first].enumerator)?;
            for next in 1..count {
                let counter = &COUNTERS[first + next];
                if self.enumerator(counter.enumerator)? != base + next as u64 {
                    return Err(BtfError::Apart(COUNTERS[first].name, counter.name));
                }
            }
            *place = base as u32;
        }
        // All or none: one leads to the other.
        let types = TYPED.map(|name| self.structure(name).unwrap_or(0));
        if !types.contains(&0) {
            kernel.types = types;
        }
        for hook in &HOOKS {
            if let Some(prototype) = self.prototype(hook.function) {
                kernel.arity[hook.index] = prototype.arguments.len() as u8;
            }
        }
        kernel.hash_add_tells = self
            .prototype(HOOKS[hook::HASH_ADD].function)
            .is_some_and(|prototype| prototype.returns != "void")
            .into();
        kernel.kfree_has_sk = self
            .tracepoint(KFREE_SKB)
            .is_some_and(|prototype| {
                prototype
                    .arguments
                    .get(3)
                    .is_some_and(|kind| kind == "*sock")
            })
            .into();
        kernel.tcp_established = self.enumerator("TCP_ESTABLISHED")? as u8;
        kernel.tcp_syn_recv = self.enumerator("TCP_SYN_RECV")? as u8;
        kernel.tcp_listen = self.enumerator("TCP_LISTEN")? as u8;
        Ok(kernel)
    }

    /// Whether a hook's function is there with a prototype that is known; if not, why.
    ///
    /// # Errors
    /// A sentence that says what is wrong, to be shown.
    pub fn fits(&self, hook: &Hook) -> Result<Prototype, String> {
        let Some(prototype) = self.prototype(hook.function) else {
            return Err("this kernel has no such function".to_owned());
        };
        let count = prototype.arguments.len();
        let (least, most) = hook.arity;
        let arity = usize::from(least)..=usize::from(most);
        let known = arity.contains(&count)
            && hook
                .arguments
                .iter()
                .zip(&prototype.arguments)
                .all(|(relied_on, found)| relied_on == found);
        if known {
            Ok(prototype)
        } else {
            Err(format!(
                "its prototype is not one that is known: {prototype}"
            ))
        }
    }
}

/// The functions that stand for what the kernel can iterate over.
pub const ITERATORS: [&str; 2] = ["bpf_iter_task_file", "bpf_iter_tcp"];

/// What the typedefs of tracepoints' prototypes begin with.
const TRACEPOINT: &str = "btf_trace_";

/// The names of the types that are often looked up: functions, holders of fields, tracepoints.
fn names() -> HashSet<String> {
    let functions = HOOKS
        .iter()
        .map(|hook| hook.function)
        .chain(ITERATORS)
        .map(str::to_owned);
    let holders = FIELDS
        .iter()
        .filter_map(|field| field.path.split('.').next())
        .map(str::to_owned);
    let tracepoints = [KFREE_SKB].map(|name| format!("{TRACEPOINT}{name}"));
    let typed = TYPED.into_iter().chain([CAST]).map(str::to_owned);
    functions
        .chain(holders)
        .chain(tracepoints)
        .chain(typed)
        .collect()
}

/// The tracepoint whose arguments differ between kernels.
const KFREE_SKB: &str = "kfree_skb";

/// Reads a file of types through a mapping of memory, which takes an eighth of the time
/// and a tenth of the memory of parsing it whole. Kernels before 6.16 cannot map their
/// own file, so a copy is mapped; where even that cannot be done it is parsed.
fn open(path: &Path) -> Result<Btf, btf_rs::Error> {
    if let Ok(btf) = Btf::from_file_with_backend(path, Backend::Mmap) {
        return Ok(btf);
    }
    let copied = || -> std::io::Result<std::fs::File> {
        let mut copy = std::fs::File::from(memfd_create("btf", MemfdFlags::CLOEXEC)?);
        // Not from file to file: the kernel splices its own files a page at a time.
        copy.write_all(&std::fs::read(path)?)?;
        Ok(copy)
    };
    let Ok(copy) = copied() else {
        return Btf::from_file(path);
    };
    let mapped = format!("/proc/self/fd/{}", copy.as_raw_fd());
    if Path::new(&mapped).exists() {
        Btf::from_file_with_backend(mapped, Backend::Mmap)
    } else {
        Btf::from_file(path)
    }
}

#[cfg(test)]
mod tests {
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
}
