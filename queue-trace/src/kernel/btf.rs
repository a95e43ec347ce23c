//! What the running kernel's BTF says: where fields are, how many arguments functions
//! take, what enumerators are worth. Nothing here touches the kernel; it reads the
//! file `/sys/kernel/btf/vmlinux` or the one given with `--btf`.

mod evidence;
mod file;
mod index;
mod marks;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use btf_rs::{Btf, BtfType, Type};
use queue_trace_common::{
    counter::{COUNTERS, GROUPS, SOLE},
    field::{self, FIELDS, Field},
    hook::{self, HOOKS, Hook},
    outcome::{self, Set},
    reason::{self, REASONS, Reason},
    settings::{self, CAST, TYPED},
};

pub use self::{evidence::Architecture, file::FileError};

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
        /// What is wrong with it.
        why: FileError,
    },
    /// The file holds the types of another kernel than the one that runs.
    #[error(
        "{path} holds the types of another kernel: those of this one are at {SYSTEM} and differ. \
         Leave --btf out (`queue-trace check --btf` judges another kernel)"
    )]
    Another {
        /// The file.
        path: PathBuf,
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
    /// A counter further from the first than any kernel has it.
    #[error("the counter {0} is at a place that no kernel has")]
    FarCounter(&'static str),
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
    /// The running kernel's types, by its own word or by that of a file made for it.
    ///
    /// # Errors
    /// [`BtfError::Missing`] if the kernel shows none, [`BtfError::Unreadable`] if the
    /// file is not BTF, [`BtfError::Another`] if it is another kernel's.
    pub fn read(file: Option<&Path>) -> Result<Self, BtfError> {
        let system = Path::new(SYSTEM);
        let Some(path) = file else {
            if !system.exists() {
                return Err(BtfError::Missing);
            }
            let btf = file::open_system(system).map_err(|why| BtfError::Unreadable {
                path: system.to_owned(),
                why,
            })?;
            return Ok(Self::of(btf, system.to_owned()));
        };
        let types = Self::of_file(path)?;
        // Where the kernel shows none only the self-test can tell.
        if let Ok(own) = std::fs::read(system)
            && file::bytes(path).is_ok_and(|given| given != own)
        {
            return Err(BtfError::Another {
                path: path.to_owned(),
            });
        }
        Ok(types)
    }

    /// The types in a file, of whatever kernel.
    ///
    /// # Errors
    /// [`BtfError::Unreadable`].
    pub fn of_file(path: &Path) -> Result<Self, BtfError> {
        let read = || -> Result<Btf, FileError> { Ok(file::open(&file::bytes(path)?)?) };
        let btf = read().map_err(|why| BtfError::Unreadable {
            path: path.to_owned(),
            why,
        })?;
        Ok(Self::of(btf, path.to_owned()))
    }

    fn of(btf: Btf, path: PathBuf) -> Self {
        let mut types = Self {
            btf,
            path,
            enumerators: HashMap::new(),
            by_name: names().into_iter().map(|name| (name, Vec::new())).collect(),
        };
        types.index();
        types
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

    /// The number of a function's prototype among the types: functions of one prototype have the
    /// same.
    #[must_use]
    pub fn prototype_number(&self, function: &str) -> Option<u32> {
        self.named(function).find_map(|(_, kind)| match kind {
            Type::Func(function) => function.get_type_id(),
            _ => None,
        })
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
        if prototype.arguments.is_empty() {
            return None;
        }
        prototype.arguments.remove(0);
        Some(prototype)
    }

    /// The number of the type that tells a tracepoint's arguments; `None` if the kernel's BTF does not
    /// have it.
    #[must_use]
    pub fn tracepoint_number(&self, name: &str) -> Option<u32> {
        self.named(&format!("{TRACEPOINT}{name}"))
            .find_map(|(id, kind)| matches!(kind, Type::Typedef(_)).then_some(id))
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
                .map(|parameter| self.type_name(parameter.get_type_id().unwrap_or(0), DEEPEST))
                .collect(),
            returns: self.type_name(prototype.return_type_id(), DEEPEST),
        })
    }

    /// The name of a type without qualifiers; `*name` for a pointer to it. `depth`: how many
    /// more types it may lead through.
    fn type_name(&self, id: u32, depth: usize) -> String {
        if id == 0 {
            return "void".to_owned();
        }
        let (Ok(kind), Some(depth)) = (self.btf.resolve_type_by_id(id), depth.checked_sub(1))
        else {
            return "?".to_owned();
        };
        let Some(as_type) = kind.as_btf_type() else {
            return "function".to_owned();
        };
        let inner = as_type.get_type_id().unwrap_or(0);
        match &kind {
            Type::Ptr(_) => format!("*{}", self.type_name(inner, depth)),
            Type::Const(_) | Type::Volatile(_) | Type::Restrict(_) | Type::TypeTag(_) => {
                self.type_name(inner, depth)
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
        let patience = Cell::new(PATIENCE);
        for name in names {
            let (at, next, width) = self.member(&kind, name, DEEPEST, &patience)?;
            bits += at;
            kind = next;
            bit_field = width;
        }
        let size = match bit_field {
            Some(width) => (bits % 8 + width).div_ceil(8),
            None => self.size(&kind, DEEPEST)?,
        };
        Some((bits / 8, size))
    }

    /// A member of a struct, also inside its anonymous members: where it is in bits,
    /// its type, and its width if it is a bit-field. Looks at no more than `depth` structs inside
    /// each other, and at no more members in all than `patience` says: a struct that is said
    /// to hold itself has no end.
    fn member(
        &self,
        holder: &Type,
        name: &str,
        depth: usize,
        patience: &Cell<usize>,
    ) -> Option<(usize, Type, Option<usize>)> {
        let (Type::Struct(holder) | Type::Union(holder)) = holder else {
            return None;
        };
        let depth = depth.checked_sub(1)?;
        patience.set(patience.get().checked_sub(holder.members.len() + 1)?);
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
                patience.set(patience.get().checked_sub(1)?);
                let kind = self.unqualified(self.btf.resolve_chained_type(member).ok()?)?;
                if let Some((inside, kind, width)) = self.member(&kind, name, depth, patience) {
                    return Some((at + inside, kind, width));
                }
            }
        }
        None
    }

    /// A type without its typedefs and qualifiers.
    fn unqualified(&self, mut kind: Type) -> Option<Type> {
        for _ in 0..DEEPEST {
            kind = match &kind {
                Type::Typedef(_)
                | Type::Const(_)
                | Type::Volatile(_)
                | Type::Restrict(_)
                | Type::TypeTag(_) => self.btf.resolve_chained_type(kind.as_btf_type()?).ok()?,
                _ => return Some(kind),
            };
        }
        None
    }

    fn size(&self, kind: &Type, depth: usize) -> Option<usize> {
        let depth = depth.checked_sub(1)?;
        match kind {
            Type::Int(int) => Some(int.size()),
            Type::Ptr(_) => Some(size_of::<u64>()),
            Type::Struct(holder) | Type::Union(holder) => Some(holder.size()),
            Type::Enum(kind) => Some(kind.size()),
            Type::Enum64(kind) => Some(kind.size()),
            Type::Array(array) => {
                let element = self.unqualified(self.btf.resolve_chained_type(array).ok()?)?;
                // A flexible array counts as one element: enough to say it is there.
                self.size(&element, depth)?.checked_mul(array.len().max(1))
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
            if base > FARTHEST_COUNTER {
                return Err(BtfError::FarCounter(COUNTERS[first].name));
            }
            for next in 1..count {
                let counter = &COUNTERS[first + next];
                if self.enumerator(counter.enumerator)? != base + next as u64 {
                    return Err(BtfError::Apart(COUNTERS[first].name, counter.name));
                }
            }
            *place = base as u32;
        }
        kernel.sole = self.sole();
        kernel.reasons = self.reasons();
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

    /// The places of [`SOLE`]; 0 where this kernel has none.
    fn sole(&self) -> [u32; SOLE.len()] {
        SOLE.map(|counter| {
            let place = self.enumerator(counter.enumerator).unwrap_or(0);
            u32::try_from(place.min(FARTHEST_COUNTER)).unwrap_or(0)
        })
    }

    /// The outcomes that this kernel tells by a counter each.
    #[must_use]
    pub fn told_by_counters(&self) -> Set {
        let told = self.sole().into_iter().zip(outcome::BY_SOLE);
        let told = told.filter(|(place, tag)| {
            let fast_open = FIELDS[field::NET_FAST_OPEN].path;
            let looked_for = *tag != outcome::FAST_OPEN_REFUSED || self.locate(fast_open).is_some();
            *place != 0 && looked_for
        });
        told.fold(0, |set, (_, tag)| set | 1 << tag)
    }

    /// This kernel's numbers of the reasons for freeing a packet; all 0 if its tracepoint gives none.
    fn reasons(&self) -> [u32; reason::COUNT] {
        let given = self.tracepoint(KFREE_SKB);
        if given.is_none_or(|prototype| prototype.arguments.len() <= REASON_AT) {
            return [0; _];
        }
        let number = |reason: &Reason| self.enumerator(reason.enumerator).unwrap_or(0);
        std::array::from_fn(|index| u32::try_from(number(&REASONS[index])).unwrap_or(0))
    }

    /// The outcomes that this kernel tells by its reasons for freeing a packet.
    #[must_use]
    pub fn told_by_reasons(&self) -> Set {
        reason::outcomes(&self.reasons())
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

/// The tracepoints by which packets, connections and listeners are watched without hooks.
pub const TRACEPOINTS: [&str; 4] = [
    "inet_sock_set_state",
    "consume_skb",
    "kfree_skb",
    "netif_receive_skb",
];

/// The functions that stand for what the kernel can iterate over.
pub const ITERATORS: [&str; 2] = ["bpf_iter_task_file", "bpf_iter_tcp"];

/// The enums with a name whose enumerators are looked up.
const ENUMS: [&str; 2] = ["skb_drop_reason", marks::MAP_TYPES];

/// What the typedefs of tracepoints' prototypes begin with.
pub const TRACEPOINT: &str = "btf_trace_";

/// Types that may lead to each other, and structs that may be inside each other, before it is
/// taken for a circle.
const DEEPEST: usize = 32;

/// Members that are looked at for one field. The largest structs have a few hundred.
const PATIENCE: usize = 1 << 16;

/// Kernels have less than two hundred counters.
const FARTHEST_COUNTER: u64 = 4096;

/// Everything that is ever looked up in types, by name.
#[derive(Debug)]
pub struct LookedUp {
    /// Types: functions, structs, the typedefs of tracepoints.
    pub names: HashSet<String>,
    /// Members of structs.
    pub members: HashSet<String>,
    /// Enumerators.
    pub enumerators: HashSet<String>,
}

impl LookedUp {
    /// All of it.
    #[must_use]
    pub fn all() -> Self {
        let paths = FIELDS.iter().map(|field| field.path);
        let members = paths.flat_map(|path| path.split('.').skip(1));
        Self {
            names: names(),
            members: members.chain(marks::MEMBERS).map(str::to_owned).collect(),
            enumerators: enumerators().into_iter().map(str::to_owned).collect(),
        }
    }
}

/// The names of the types that are looked up: functions, holders of fields, tracepoints.
fn names() -> HashSet<String> {
    let functions = HOOKS
        .iter()
        .map(|hook| hook.function)
        .chain(ITERATORS)
        .chain(marks::NAMES)
        .map(str::to_owned);
    let holders = FIELDS
        .iter()
        .filter_map(|field| field.path.split('.').next())
        .map(str::to_owned);
    let tracepoints = TRACEPOINTS.map(|name| format!("{TRACEPOINT}{name}"));
    let typed = TYPED
        .into_iter()
        .chain([CAST])
        .chain(ENUMS)
        .map(str::to_owned);
    functions
        .chain(holders)
        .chain(tracepoints)
        .chain(typed)
        .collect()
}

/// The enumerators that are looked up, wherever they are declared: the kernel's counters and
/// states are in anonymous enums.
fn enumerators() -> HashSet<&'static str> {
    COUNTERS
        .iter()
        .chain(&SOLE)
        .map(|counter| counter.enumerator)
        .chain(["TCP_ESTABLISHED", "TCP_SYN_RECV", "TCP_LISTEN"])
        .chain(REASONS.iter().map(|reason| reason.enumerator))
        .chain([marks::RING_BUFFER])
        .collect()
}

/// Where `kfree_skb` has the reason.
const REASON_AT: usize = 2;

/// The tracepoint whose arguments differ between kernels.
const KFREE_SKB: &str = "kfree_skb";
