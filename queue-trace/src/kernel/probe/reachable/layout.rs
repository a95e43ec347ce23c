//! Where an object has its functions, and what says so.

use anyhow::{Context as _, Result};
use object::{
    LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags,
    RelocationTarget, SectionFlags, SectionIndex, SymbolKind,
    elf::{R_BPF_64_32, SHF_EXECINSTR, SHT_NOTE},
    read::elf::{ElfFile64, FileHeader as _, SectionHeader as _},
};

type Elf<'a> = ElfFile64<'a, LittleEndian>;

/// Bytes of an entry of a table of sections, of symbols and of relocations, and where in them is
/// what is changed (`Elf64_Shdr`, `Elf64_Sym`, `Elf64_Rel`).
const HEADER: usize = 64;
const HEADER_SIZE: usize = 32;
const SYMBOL: usize = 24;
const SYMBOL_VALUE: usize = 8;
const SYMBOL_SIZE: usize = 16;
const RELOCATION: usize = 16;

/// Of what the linker never makes: the object is one of those that are built in.
pub(super) const ASTRAY: &str = "the kernel side is not laid out as it should be";

/// The functions that belong to no program alone.
const TEXT: &str = ".text";

/// A place in no function.
const NOWHERE: usize = usize::MAX & !7;

/// All sections with code that somebody looks at.
pub(super) struct Layout {
    pub(super) sections: Vec<Section>,
}

/// One of them.
pub(super) struct Section {
    pub(super) index: SectionIndex,
    pub(super) is_text: bool,
    /// By their places.
    pub(super) functions: Vec<Function>,
    pub(super) relocations: Vec<Relocation>,
    /// Where it is in the file.
    place: usize,
    /// Where its entry in the table of sections is.
    header: usize,
}

/// A function.
pub(super) struct Function {
    /// Where it begins in its section.
    pub(super) start: usize,
    size: usize,
    /// Where its symbol is in the file.
    symbol: usize,
}

/// A place of a section that the library fills in.
pub(super) struct Relocation {
    /// Which.
    pub(super) at: usize,
    /// Whether it is a call whose own number says which function of the text is called.
    pub(super) calls_text: bool,
    /// Where it is in the file.
    entry: usize,
}

impl Layout {
    pub(super) fn of(object: &[u8]) -> Result<Self> {
        let elf = Elf::parse(object).context(ASTRAY)?;
        let table = usize::try_from(elf.elf_header().e_shoff(LittleEndian))?;
        let has_code = |section: &object::read::elf::ElfSection64<'_, '_, LittleEndian>| {
            let is_code = matches!(section.flags(), SectionFlags::Elf { sh_flags }
                if sh_flags & u64::from(SHF_EXECINSTR) != 0);
            is_code && section.elf_section_header().sh_type(LittleEndian) != SHT_NOTE
        };
        let sections = elf.sections().filter(has_code).map(|section| {
            let (place, _) = section.file_range().context(ASTRAY)?;
            Ok(Section {
                index: section.index(),
                is_text: section.name()? == TEXT,
                functions: functions(&elf, section.index())?,
                relocations: relocations(&elf, section.index())?,
                place: usize::try_from(place)?,
                header: table + HEADER * section.index().0,
            })
        });
        Ok(Self {
            sections: sections.collect::<Result<_>>()?,
        })
    }
}

fn functions(elf: &Elf<'_>, section: SectionIndex) -> Result<Vec<Function>> {
    let table = elf.elf_symbol_table().section();
    let (table, _) = elf.section_by_index(table)?.file_range().context(ASTRAY)?;
    let own = elf.symbols().filter(|symbol| {
        symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(section)
    });
    let functions = own.map(|symbol| {
        Ok(Function {
            start: usize::try_from(symbol.address())?,
            size: usize::try_from(symbol.size())?,
            symbol: usize::try_from(table)? + SYMBOL * symbol.index().0,
        })
    });
    let mut functions = functions.collect::<Result<Vec<_>>>()?;
    functions.sort_by_key(|function| function.start);
    Ok(functions)
}

fn relocations(elf: &Elf<'_>, section: SectionIndex) -> Result<Vec<Relocation>> {
    let is_table = |table: &object::read::elf::ElfSection64<'_, '_, LittleEndian>| {
        table.elf_section_header().sh_info(LittleEndian) as usize == section.0
            && table.elf_section_header().sh_type(LittleEndian) == object::elf::SHT_REL
    };
    let Some(table) = elf.sections().find(is_table) else {
        return Ok(Vec::new());
    };
    let (table, _) = table.file_range().context(ASTRAY)?;
    let own = elf.section_by_index(section)?;
    let relocations = own
        .relocations()
        .enumerate()
        .map(|(number, (at, relocation))| {
            let RelocationTarget::Symbol(symbol) = relocation.target() else {
                anyhow::bail!(ASTRAY);
            };
            let is_call = matches!(
                relocation.flags(),
                RelocationFlags::Elf {
                    r_type: R_BPF_64_32
                }
            );
            Ok(Relocation {
                at: usize::try_from(at)?,
                calls_text: is_call && elf.symbol_by_index(symbol)?.kind() == SymbolKind::Section,
                entry: usize::try_from(table)? + RELOCATION * number,
            })
        });
    relocations.collect()
}

impl Section {
    pub(super) fn code<'a>(&self, object: &'a [u8], function: &Function) -> Option<&'a [u8]> {
        let start = self.place + function.start;
        object.get(start..start + function.size)
    }

    pub(super) fn set_code(&self, object: &mut [u8], start: usize, code: &[u8]) -> Option<()> {
        put(object, self.place + start, code)
    }

    /// The function that has a place.
    pub(super) fn function_at(&self, at: usize) -> Option<&Function> {
        let next = self
            .functions
            .partition_point(|function| function.start <= at);
        let function = self.functions.get(next.checked_sub(1)?)?;
        (at < function.start + function.size).then_some(function)
    }

    /// Whether the library fills in a place.
    pub(super) fn is_relocated(&self, at: usize) -> bool {
        self.relocations
            .iter()
            .any(|relocation| relocation.at == at)
    }

    /// The immediate bytes of the instruction at a place, as a number.
    pub(super) fn number(&self, object: &[u8], at: usize) -> Option<i32> {
        let start = self.place + at + 4;
        let bytes = object.get(start..start + 4)?;
        Some(i32::from_le_bytes(bytes.try_into().ok()?))
    }

    pub(super) fn set_number(&self, object: &mut [u8], at: usize, number: i32) -> Option<()> {
        put(object, self.place + at + 4, &number.to_le_bytes())
    }

    pub(super) fn set_size(&self, object: &mut [u8], size: usize) -> Option<()> {
        put(object, self.header + HEADER_SIZE, &word(size))
    }
}

impl Function {
    pub(super) fn set_symbol(&self, object: &mut [u8], start: usize, size: usize) -> Option<()> {
        put(object, self.symbol + SYMBOL_VALUE, &word(start))?;
        put(object, self.symbol + SYMBOL_SIZE, &word(size))
    }
}

impl Relocation {
    pub(super) fn move_to(&self, object: &mut [u8], at: usize) -> Option<()> {
        put(object, self.entry, &word(at))
    }

    pub(super) fn remove(&self, object: &mut [u8]) -> Option<()> {
        self.move_to(object, NOWHERE)
    }
}

fn word(number: usize) -> [u8; 8] {
    (number as u64).to_le_bytes()
}

fn put(object: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    let place = object.get_mut(at..at.checked_add(bytes.len())?)?;
    place.copy_from_slice(bytes);
    Some(())
}
