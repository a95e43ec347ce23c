//! A live test that ends early proves nothing, and passes. It may do so only where the
//! registry of the live tests says so: after `if unproven("its::name", ALL)`.

use std::path::Path;

use anyhow::{Context, Result};
use syn::{
    spanned::Spanned,
    visit::{self, Visit},
};

use super::{finding::Finding, source::Sources};

const FOLDER: &str = "tests/live";
/// The only condition on which a test may end early.
const ASKED: &str = "unproven";

pub fn findings(sources: &Sources) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (file, text) in sources.iter().filter(|(file, _)| file.starts_with(FOLDER)) {
        let syntax =
            syn::parse_file(text).with_context(|| format!("cannot parse {}", file.display()))?;
        let mut reader = Reader {
            file,
            findings: &mut findings,
        };
        reader.visit_file(&syntax);
    }
    Ok(findings)
}

struct Reader<'a> {
    file: &'a Path,
    findings: &'a mut Vec<Finding>,
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let is_test = |attribute: &syn::Attribute| attribute.path().is_ident("test");
        if function.attrs.iter().any(is_test) {
            Body(self).visit_block(&function.block);
        } else {
            visit::visit_item_fn(self, function);
        }
    }
}

/// The body of a test, without the closures and functions in it.
struct Body<'a, 'b>(&'a mut Reader<'b>);

impl<'ast> Visit<'ast> for Body<'_, '_> {
    fn visit_expr_if(&mut self, branch: &'ast syn::ExprIf) {
        if asks(&branch.cond) {
            // Its own branch is what the registry is about.
            if let Some((_, other)) = &branch.else_branch {
                self.visit_expr(other);
            }
        } else {
            visit::visit_expr_if(self, branch);
        }
    }

    fn visit_expr_return(&mut self, expression: &'ast syn::ExprReturn) {
        // What it returns to is a check of another kind.
        if let Some(syn::Expr::Call(_)) = expression.expr.as_deref() {
            return;
        }
        self.0.findings.push(Finding {
            file: self.0.file.to_owned(),
            line: expression.span().start().line,
            what: format!("a test that ends early must ask the registry first: `if {ASKED}(…)`"),
        });
    }

    fn visit_expr_closure(&mut self, _: &'ast syn::ExprClosure) {}

    fn visit_item(&mut self, _: &'ast syn::Item) {}
}

fn asks(condition: &syn::Expr) -> bool {
    let syn::Expr::Call(call) = condition else {
        return false;
    };
    matches!(&*call.func, syn::Expr::Path(path)
        if path.path.segments.last().is_some_and(|last| last.ident == ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        let sources = Sources::of(&[("tests/live/a.rs", text), ("xtask/b.rs", text)]);
        let findings = findings(&sources).unwrap();
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_test_that_ends_early_is_found() {
        let text = "#[test]\nfn a() {\n    if old() {\n        return;\n    }\n}\n";
        assert_eq!(lines(text), [4]);
    }

    #[test]
    fn not_if_it_ends_with_another_check() {
        let text = "#[test]\nfn a() {\n    if old() {\n        return check();\n    }\n}\n";
        assert!(lines(text).is_empty());
    }

    #[test]
    fn unless_the_registry_says_so() {
        let text =
            "#[test]\nfn a() {\n    if unproven(\"a::a\", ALL) {\n        return;\n    }\n}\n";
        assert!(lines(text).is_empty());
    }

    #[test]
    fn functions_and_closures_may_return() {
        let text = "fn a() { return; }\n#[test]\nfn b() { let _ = || return; }\n";
        assert!(lines(text).is_empty());
    }
}
