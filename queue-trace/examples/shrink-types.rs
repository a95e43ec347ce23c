//! Makes a small file of types out of a kernel's: of all that `queue-trace check --btf` looks
//! up, and nothing else. The tests' files in `tests/kernels` are made so.
//!
//!     cargo run --example shrink-types -- vmlinux.btf small.btf

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        collections::{BTreeMap, BTreeSet},
        env, fs,
    };

    use anyhow::{Context, Result, bail};
    use queue_trace::kernel::btf::LookedUp;

    // Kinds of types (linux/btf.h).
    const INT: u32 = 1;
    const PTR: u32 = 2;
    const ARRAY: u32 = 3;
    const STRUCT: u32 = 4;
    const UNION: u32 = 5;
    const ENUM: u32 = 6;
    const FWD: u32 = 7;
    const TYPEDEF: u32 = 8;
    const VOLATILE: u32 = 9;
    const CONST: u32 = 10;
    const RESTRICT: u32 = 11;
    const FUNC: u32 = 12;
    const PROTOTYPE: u32 = 13;
    const VARIABLE: u32 = 14;
    const SECTION: u32 = 15;
    const DECL_TAG: u32 = 17;
    const TYPE_TAG: u32 = 18;
    const ENUM64: u32 = 19;

    const HEADER: usize = 24;

    #[derive(Clone)]
    struct Kind {
        name: String,
        kind: u32,
        flag: u32,
        /// A size, or a type.
        value: u32,
        /// Words of each part; of members the first one is a name.
        parts: Vec<Vec<u32>>,
        names: Vec<String>,
    }

    pub fn main() -> Result<()> {
        let [from, to] = &env::args().skip(1).collect::<Vec<_>>()[..] else {
            bail!("shrink-types FROM TO");
        };
        let kinds = read(&fs::read(from)?).context("it is not BTF")?;
        let looked_up = LookedUp::all();
        let mut small = Small {
            kinds: &kinds,
            looked_up: &looked_up,
            numbers: BTreeMap::new(),
            out: Vec::new(),
        };
        for (number, kind) in kinds.iter().enumerate().skip(1) {
            let wanted = match kind.kind {
                ENUM => kind
                    .names
                    .iter()
                    .any(|name| looked_up.enumerators.contains(name)),
                STRUCT | UNION | TYPEDEF | FUNC => looked_up.names.contains(&kind.name),
                _ => false,
            };
            if wanted {
                small.keep(number as u32);
            }
        }
        let bytes = write(&small.out);
        fs::write(to, &bytes)?;
        println!("{to}: {} types, {} bytes", small.out.len(), bytes.len());
        Ok(())
    }

    fn read(bytes: &[u8]) -> Option<Vec<Kind>> {
        let word = |place: usize| -> Option<u32> {
            Some(u32::from_le_bytes(
                bytes.get(place..place + 4)?.try_into().ok()?,
            ))
        };
        let header = word(4)? as usize;
        let (types, length) = (header + word(8)? as usize, word(12)? as usize);
        let names = header + word(16)? as usize;
        let name = |offset: u32| -> Option<String> {
            let rest = bytes.get(names + offset as usize..)?;
            let end = rest.iter().position(|byte| *byte == 0)?;
            Some(String::from_utf8_lossy(&rest[..end]).into_owned())
        };
        let mut kinds = vec![Kind {
            name: String::new(),
            kind: 0,
            flag: 0,
            value: 0,
            parts: Vec::new(),
            names: Vec::new(),
        }];
        let mut place = types;
        while place < types + length {
            let info = word(place + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, info & 0xffff);
            let (count, words) = match kind {
                INT | VARIABLE | DECL_TAG => (1, 1),
                ARRAY => (1, 3),
                STRUCT | UNION | SECTION | ENUM64 => (count, 3),
                ENUM | PROTOTYPE => (count, 2),
                _ => (0, 0),
            };
            let mut parts = Vec::new();
            for part in 0..count as usize {
                let start = place + 12 + part * words * 4;
                parts.push(
                    (0..words)
                        .map(|n| word(start + 4 * n))
                        .collect::<Option<Vec<_>>>()?,
                );
            }
            let named = matches!(kind, STRUCT | UNION | ENUM | ENUM64 | PROTOTYPE);
            let names = match named {
                true => parts
                    .iter()
                    .map(|part| name(part[0]))
                    .collect::<Option<_>>()?,
                false => Vec::new(),
            };
            kinds.push(Kind {
                name: name(word(place)?)?,
                kind,
                flag: info >> 31,
                value: word(place + 8)?,
                parts,
                names,
            });
            place += 12 + count as usize * words * 4;
        }
        Some(kinds)
    }

    struct Small<'a> {
        kinds: &'a [Kind],
        looked_up: &'a LookedUp,
        /// The number that each kept type has now.
        numbers: BTreeMap<u32, u32>,
        out: Vec<Kind>,
    }

    impl Small<'_> {
        /// Keeps a type with what belongs to it, and gives its number.
        fn keep(&mut self, number: u32) -> u32 {
            if number == 0 {
                return 0;
            }
            if let Some(known) = self.numbers.get(&number) {
                return *known;
            }
            let mut kind = self.kinds[number as usize].clone();
            self.out.push(kind.clone());
            let place = self.out.len();
            self.numbers.insert(number, place as u32);
            match kind.kind {
                PTR => kind.value = self.pointed_at(kind.value),
                TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | TYPE_TAG => {
                    kind.value = self.keep(kind.value);
                }
                ARRAY => {
                    kind.parts[0][0] = self.keep(kind.parts[0][0]);
                    kind.parts[0][1] = self.keep(kind.parts[0][1]);
                }
                STRUCT | UNION => {
                    // All members of a struct that is looked up, as others of them may be
                    // needed one day.
                    let whole = self.looked_up.names.contains(&kind.name);
                    let wanted = |name: &String| {
                        whole || name.is_empty() || self.looked_up.members.contains(name)
                    };
                    let kept: Vec<_> = (0..kind.names.len())
                        .filter(|place| wanted(&kind.names[*place]))
                        .collect();
                    kind.names = kept.iter().map(|n| kind.names[*n].clone()).collect();
                    kind.parts = kept.iter().map(|n| kind.parts[*n].clone()).collect();
                    for part in &mut kind.parts {
                        part[1] = self.keep(part[1]);
                    }
                }
                PROTOTYPE => {
                    kind.value = self.keep(kind.value);
                    for part in &mut kind.parts {
                        part[1] = self.keep(part[1]);
                    }
                }
                ENUM | ENUM64 => {
                    let kept: Vec<_> = (0..kind.names.len())
                        .filter(|n| self.looked_up.enumerators.contains(&kind.names[*n]))
                        .collect();
                    kind.names = kept.iter().map(|n| kind.names[*n].clone()).collect();
                    kind.parts = kept.iter().map(|n| kind.parts[*n].clone()).collect();
                }
                _ => {}
            }
            self.out[place - 1] = kind;
            place as u32
        }

        /// What a pointer leads to: of a struct only its name, of most else nothing.
        fn pointed_at(&mut self, number: u32) -> u32 {
            let kind = &self.kinds[number as usize];
            match kind.kind {
                STRUCT | UNION => {
                    self.out.push(Kind {
                        kind: FWD,
                        flag: u32::from(kind.kind == UNION),
                        value: 0,
                        parts: Vec::new(),
                        names: Vec::new(),
                        name: kind.name.clone(),
                    });
                    self.out.len() as u32
                }
                CONST | VOLATILE | RESTRICT | TYPE_TAG => {
                    let mut kind = kind.clone();
                    kind.value = self.pointed_at(kind.value);
                    self.out.push(kind);
                    self.out.len() as u32
                }
                TYPEDEF => {
                    let mut kind = kind.clone();
                    kind.value = 0;
                    self.out.push(kind);
                    self.out.len() as u32
                }
                // Of the prototypes only those of tracepoints are looked at.
                PROTOTYPE if !kind.names.is_empty() => {
                    let tracer = self.kinds[kind.parts[0][1] as usize].kind == PTR;
                    if tracer { self.keep(number) } else { 0 }
                }
                INT | ENUM | FWD | PTR => self.keep(number),
                _ => 0,
            }
        }
    }

    fn write(kinds: &[Kind]) -> Vec<u8> {
        let names: BTreeSet<&str> = kinds
            .iter()
            .flat_map(|kind| kind.names.iter().chain([&kind.name]))
            .map(String::as_str)
            .collect();
        let mut strings = vec![0];
        let mut offsets = BTreeMap::from([("", 0)]);
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            offsets.insert(name, strings.len() as u32);
            strings.extend(name.bytes().chain([0]));
        }
        let mut types = Vec::new();
        for kind in kinds {
            let count = match kind.kind {
                INT | ARRAY | VARIABLE | DECL_TAG => 0,
                _ => kind.parts.len() as u32,
            };
            let info = kind.flag << 31 | kind.kind << 24 | count;
            for word in [offsets[kind.name.as_str()], info, kind.value] {
                types.extend(word.to_le_bytes());
            }
            for (place, part) in kind.parts.iter().enumerate() {
                let mut part = part.clone();
                if let Some(name) = kind.names.get(place) {
                    part[0] = offsets[name.as_str()];
                }
                part.iter()
                    .for_each(|word| types.extend(word.to_le_bytes()));
            }
        }
        let lengths = [
            HEADER as u32,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        lengths
            .iter()
            .for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }
}
