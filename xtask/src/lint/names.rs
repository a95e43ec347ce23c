//! Which file imports what from which file: every path in a crate's own modules, followed to
//! the file that defines it. A name that a module only hands on (`pub use`) leads to where it
//! comes from. Tests are left out, and so is what is not the crate's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::{
    spanned::Spanned,
    visit::{self, Visit},
};

use super::source::Sources;

/// One file uses something of another.
#[derive(Debug, PartialEq, Eq)]
pub struct Import {
    pub from: PathBuf,
    pub to: PathBuf,
    pub line: usize,
    /// The path as it is written.
    pub what: String,
}

/// The names of modules from the crate's root; the root itself has none.
type Name = Vec<String>;

#[derive(Default)]
struct Module {
    file: PathBuf,
    children: BTreeSet<String>,
    /// What it defines itself.
    items: BTreeSet<String>,
    /// What it brings in, by the name that it has here.
    brought: BTreeMap<String, Name>,
    /// Modules of which it brings in everything.
    globs: Vec<Name>,
    /// Paths that it uses, and in which line.
    used: Vec<(Name, usize)>,
}

pub struct Crate(BTreeMap<Name, Module>);

/// Re-exports of re-exports end before that.
const DEPTH: usize = 16;

impl Crate {
    /// Reads the crate whose root is in that file.
    pub fn read(sources: &Sources, root: &Path) -> Result<Self> {
        let mut modules = BTreeMap::new();
        read_module(sources, root, Name::new(), true, &mut modules)?;
        Ok(Self(modules))
    }

    /// The first import of each pair of files.
    pub fn imports(&self) -> Vec<Import> {
        let mut imports = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, module) in &self.0 {
            for (path, line) in &module.used {
                let Some(definer) = self.definer(name, path, DEPTH) else {
                    continue;
                };
                let to = &self.0[&definer].file;
                if *to != module.file && seen.insert((&module.file, to)) {
                    imports.push(Import {
                        from: module.file.clone(),
                        to: to.clone(),
                        line: *line,
                        what: path.join("::"),
                    });
                }
            }
        }
        imports
    }

    /// The module that defines what `path` means in module `from`; none for modules themselves
    /// and for what is not of this crate.
    fn definer(&self, from: &Name, path: &[String], depth: usize) -> Option<Name> {
        let depth = depth.checked_sub(1)?;
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => self.walk(Name::new(), rest, depth),
            "self" => self.walk(from.clone(), rest, depth),
            "super" => {
                let parent = from[..from.len().checked_sub(1)?].to_vec();
                match rest.first().map(String::as_str) {
                    Some("super") => self.definer(&parent, rest, depth),
                    _ => self.walk(parent, rest, depth),
                }
            }
            _ if self.has(from, first) => self.walk(from.clone(), path, depth),
            _ => None,
        }
    }

    fn walk(&self, mut at: Name, path: &[String], depth: usize) -> Option<Name> {
        for (index, segment) in path.iter().enumerate() {
            let module = self.0.get(&at)?;
            if module.children.contains(segment) {
                at.push(segment.clone());
                continue;
            }
            if module.items.contains(segment) {
                return Some(at);
            }
            if let Some(brought) = module.brought.get(segment) {
                let whole = [brought, &path[index + 1..]].concat();
                return self.definer(&at, &whole, depth);
            }
            let from_glob = module.globs.iter().find_map(|glob| {
                let whole = [glob.as_slice(), &path[index..]].concat();
                self.definer(&at, &whole, depth)
            });
            // A macro's, or what is not there in this configuration.
            return from_glob.or(Some(at));
        }
        None
    }

    fn has(&self, module: &Name, name: &str) -> bool {
        self.0.get(module).is_some_and(|module| {
            module.children.contains(name) || module.brought.contains_key(name)
        })
    }
}

/// Files of modules are beside the root and beside `mod.rs`, else in a folder of the same name.
fn read_module(
    sources: &Sources,
    file: &Path,
    name: Name,
    beside: bool,
    modules: &mut BTreeMap<Name, Module>,
) -> Result<()> {
    let text = sources
        .get(file)
        .with_context(|| format!("no file {}", file.display()))?;
    let syntax =
        syn::parse_file(text).with_context(|| format!("cannot parse {}", file.display()))?;
    let folder = if beside {
        file.parent().unwrap_or(Path::new("")).to_owned()
    } else {
        file.with_extension("")
    };
    let mut reader = Reader {
        file,
        name,
        modules,
        declared: Vec::new(),
    };
    reader.module().file = file.to_owned();
    reader.visit_file(&syntax);
    for (child, given) in std::mem::take(&mut reader.declared) {
        let last = child.last().cloned().unwrap_or_default();
        let place = given.map(|path| file.with_file_name(path));
        let [flat, deep] = [format!("{last}.rs"), format!("{last}/mod.rs")];
        let found = place
            .into_iter()
            .chain([folder.join(&flat), folder.join(&deep)])
            .find(|path| sources.get(path).is_some());
        // Elsewhere is not this crate's: a file that several share.
        if let Some(path) = found {
            let beside = path.ends_with(&deep);
            read_module(sources, &path, child, beside, modules)?;
        }
    }
    Ok(())
}

struct Reader<'a> {
    file: &'a Path,
    name: Name,
    modules: &'a mut BTreeMap<Name, Module>,
    /// Modules in files of their own, and the `path` that they were given.
    declared: Vec<(Name, Option<String>)>,
}

impl Reader<'_> {
    fn module(&mut self) -> &mut Module {
        self.modules.entry(self.name.clone()).or_default()
    }

    fn use_path(&mut self, path: Name, line: usize) {
        self.module().used.push((path, line));
    }

    /// All paths of a `use`. What is only handed on is no use of it.
    fn bring(&mut self, tree: &syn::UseTree, before: &Name, uses: bool) {
        let line = tree.span().start().line;
        let with = |ident: &syn::Ident| {
            let mut path = before.clone();
            if ident != "self" || path.is_empty() {
                path.push(ident.to_string());
            }
            path
        };
        let (path, name) = match tree {
            syn::UseTree::Path(path) => return self.bring(&path.tree, &with(&path.ident), uses),
            syn::UseTree::Group(group) => {
                return group
                    .items
                    .iter()
                    .for_each(|item| self.bring(item, before, uses));
            }
            syn::UseTree::Glob(_) => return self.module().globs.push(before.clone()),
            syn::UseTree::Name(name) => (with(&name.ident), None),
            syn::UseTree::Rename(name) => (with(&name.ident), Some(name.rename.to_string())),
        };
        let Some(name) = name.or_else(|| path.last().cloned()) else {
            return;
        };
        if uses {
            self.use_path(path.clone(), line);
        }
        // `use x;` of a crate, or of a module beside, would lead to itself.
        if path.len() > 1 {
            self.module().brought.insert(name, path);
        }
    }

    fn define(&mut self, name: &syn::Ident) {
        self.module().items.insert(name.to_string());
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Name = Vec::new();
        // Colons since the last name.
        let mut colons = 0;
        let mut line = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 && !path.is_empty() {
                        let whole = std::mem::take(&mut path);
                        self.use_path(whole, line);
                    }
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    if !path.is_empty() {
                        let whole = std::mem::take(&mut path);
                        self.use_path(whole, line);
                    }
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        if !path.is_empty() {
            self.use_path(path, line);
        }
    }
}

/// Whether it is compiled for tests alone.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let of_tests = |tokens: &TokenStream| {
            let text = tokens.to_string();
            text == "test" || text.starts_with("all (test") || text.starts_with("all(test")
        };
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg")
                && matches!(&attribute.meta, syn::Meta::List(list) if of_tests(&list.tokens)))
    })
}

fn given_path(attributes: &[syn::Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        let syn::Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        match (&pair.path, &pair.value) {
            (path, syn::Expr::Lit(literal)) if path.is_ident("path") => match &literal.lit {
                syn::Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        }
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        use syn::Item::{
            Const, Enum, Fn, Macro, Mod, Static, Struct, Trait, TraitAlias, Type, Union, Use,
        };
        let (attributes, name) = match item {
            Const(item) => (&item.attrs, Some(&item.ident)),
            Enum(item) => (&item.attrs, Some(&item.ident)),
            Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Macro(item) => (&item.attrs, item.ident.as_ref()),
            Static(item) => (&item.attrs, Some(&item.ident)),
            Struct(item) => (&item.attrs, Some(&item.ident)),
            Trait(item) => (&item.attrs, Some(&item.ident)),
            TraitAlias(item) => (&item.attrs, Some(&item.ident)),
            Type(item) => (&item.attrs, Some(&item.ident)),
            Union(item) => (&item.attrs, Some(&item.ident)),
            Mod(item) => (&item.attrs, None),
            Use(item) => (&item.attrs, None),
            syn::Item::Impl(item) => (&item.attrs, None),
            _ => return visit::visit_item(self, item),
        };
        if is_test(attributes) {
            return;
        }
        if let Some(name) = name {
            self.define(name);
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module().children.insert(item.ident.to_string());
        let mut name = self.name.clone();
        name.push(item.ident.to_string());
        let Some((_, items)) = &item.content else {
            self.declared.push((name, given_path(&item.attrs)));
            return;
        };
        let outer = std::mem::replace(&mut self.name, name);
        let file = self.file.to_owned();
        self.module().file = file;
        for item in items {
            self.visit_item(item);
        }
        self.name = outer;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let uses = matches!(item.vis, syn::Visibility::Inherited);
        self.bring(&item.tree, &Name::new(), uses);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path.segments.iter().map(|part| part.ident.to_string());
        self.use_path(names.collect(), path.span().start().line);
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(super)` is no use of what is above.
    }

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        let names = mac.path.segments.iter().map(|part| part.ident.to_string());
        self.use_path(names.collect(), mac.path.span().start().line);
        self.tokens(mac.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(files: &[(&str, &str)]) -> Vec<String> {
        let read = Crate::read(&Sources::of(files), Path::new("s/lib.rs")).unwrap();
        let show = |import: &Import| {
            let (from, to) = (import.from.display(), import.to.display());
            format!("{from}:{} {to} {}", import.line, import.what)
        };
        read.imports().iter().map(show).collect()
    }

    #[test]
    fn a_use_leads_to_the_file_that_defines_it() {
        let found = imports(&[
            ("s/lib.rs", "mod a;\nmod b;\n"),
            ("s/a.rs", "use crate::b::c::Thing;\nfn f(_: Thing) {}\n"),
            ("s/b/mod.rs", "pub mod c;\n"),
            ("s/b/c.rs", "pub struct Thing;\n"),
        ]);
        assert_eq!(found, ["s/a.rs:1 s/b/c.rs crate::b::c::Thing"]);
    }

    #[test]
    fn a_name_that_is_handed_on_is_its_makers() {
        let found = imports(&[
            ("s/lib.rs", "mod a;\nmod b;\n"),
            ("s/a.rs", "use crate::b::Thing;\n"),
            ("s/b.rs", "mod c;\npub use c::Inner as Thing;\n"),
            ("s/b/c.rs", "pub struct Inner;\n"),
        ]);
        assert_eq!(found, ["s/a.rs:1 s/b/c.rs crate::b::Thing"]);
    }

    #[test]
    fn modules_are_no_use_but_what_is_taken_from_them() {
        let found = imports(&[
            ("s/lib.rs", "mod a;\nmod b;\n"),
            ("s/a.rs", "use crate::b;\nfn f() {\n    b::c::g();\n}\n"),
            ("s/b.rs", "pub mod c;\n"),
            ("s/b/c.rs", "pub fn g() {}\n"),
        ]);
        assert_eq!(found, ["s/a.rs:3 s/b/c.rs b::c::g"]);
    }

    #[test]
    fn macros_and_globs_count() {
        let found = imports(&[
            ("s/lib.rs", "mod a;\nmod b;\nmod c;\n"),
            (
                "s/a.rs",
                "fn f() {\n    println!(\"{}\", crate::b::X);\n}\n",
            ),
            ("s/b.rs", "pub use crate::c::*;\n"),
            ("s/c.rs", "pub const X: u8 = 1;\n"),
        ]);
        assert_eq!(found, ["s/a.rs:2 s/c.rs crate::b::X"]);
    }

    #[test]
    fn tests_and_strangers_do_not() {
        let found = imports(&[
            ("s/lib.rs", "mod a;\nmod b;\n"),
            (
                "s/a.rs",
                "use std::fs;\n#[cfg(test)]\nmod tests {\n    use crate::b::X;\n}\n",
            ),
            ("s/b.rs", "pub struct X;\n"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn what_is_above_counts() {
        let found = imports(&[
            ("s/lib.rs", "mod a;\npub struct X;\n"),
            ("s/a.rs", "mod b;\n"),
            ("s/a/b.rs", "fn f(_: super::super::X) {}\n"),
        ]);
        assert_eq!(found, ["s/a/b.rs:1 s/lib.rs super::super::X"]);
    }
}
