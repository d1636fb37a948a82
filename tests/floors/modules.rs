//! The modules of the crate as the source has them: who imports what from where.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, ItemMod, ItemUse, UseTree, Visibility,
    visit::{self, Visit},
};

/// A path of names below the crate's root.
pub type Names = Vec<String>;

/// One file of the library.
pub struct Module {
    /// The file, below `src`.
    pub file: PathBuf,
    /// Paths that its code names, tests left out, as absolute names.
    pub imports: Vec<Names>,
    /// Modules that it declares, tests left out.
    children: Vec<String>,
    /// Names that it passes on, and where they come from.
    passed_on: BTreeMap<String, Names>,
}

/// All files of the library by their module paths.
pub struct Modules(pub BTreeMap<Names, Module>);

/// Where a name is defined.
pub struct Home {
    /// The module that defines it.
    pub module: Names,
    /// The modules that only passed it on, in the order they were asked.
    pub through: Vec<Names>,
}

impl Modules {
    /// Reads every file that `src/lib.rs` reaches; modules for tests are left out.
    pub fn read(src: &Path) -> Self {
        let mut modules = Self(BTreeMap::new());
        modules.add(src, Path::new("lib.rs"), Vec::new());
        modules
    }

    fn add(&mut self, src: &Path, file: &Path, path: Names) {
        let text = fs::read_to_string(src.join(file)).unwrap();
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let of_items = |item: &Item| match item {
            Item::Mod(ItemMod { attrs, ident, content: None, .. }) if !is_for_tests(attrs) => {
                Some(ident.to_string())
            }
            _ => None,
        };
        let children: Vec<String> = syntax.items.iter().filter_map(of_items).collect();
        let mut reader = Reader {
            path: &path,
            children: &children,
            imports: vec![],
            passed_on: BTreeMap::new(),
        };
        reader.visit_file(&syntax);
        let Reader { imports, passed_on, .. } = reader;
        let folder = match file.file_stem().and_then(|stem| stem.to_str()) {
            Some("lib" | "mod") => file.parent().unwrap().to_path_buf(),
            _ => file.with_extension(""),
        };
        for child in &children {
            let below = [path.clone(), vec![child.clone()]].concat();
            let files = [folder.join(format!("{child}.rs")), folder.join(child).join("mod.rs")];
            let file = files.iter().find(|file| src.join(file).exists());
            self.add(src, file.unwrap_or_else(|| panic!("no file of module {below:?}")), below);
        }
        let module = Module { file: file.to_path_buf(), imports, children, passed_on };
        self.0.insert(path, module);
    }

    /// Where the thing that `names` leads to is defined.
    pub fn home(&self, names: &[String]) -> Home {
        let (mut names, mut through) = (names.to_vec(), Vec::new());
        'again: loop {
            let mut module = Vec::new();
            for (depth, name) in names.iter().enumerate() {
                let here = &self.0[&module];
                if here.children.contains(name) {
                    module.push(name.clone());
                } else if let Some(from) = here.passed_on.get(name) {
                    through.push(module);
                    names = [from, &names[depth + 1..]].concat();
                    continue 'again;
                } else {
                    break;
                }
            }
            return Home { module, through };
        }
    }
}

/// Collects the paths of one file.
struct Reader<'a> {
    path: &'a Names,
    children: &'a [String],
    imports: Vec<Names>,
    passed_on: BTreeMap<String, Names>,
}

impl Reader<'_> {
    /// `names` from the crate's root, if they lead into this crate.
    fn absolute(&self, names: &[String]) -> Option<Names> {
        let first = names.first()?;
        match first.as_str() {
            "crate" => Some(names[1..].to_vec()),
            "self" => Some([self.path, &names[1..]].concat()),
            "super" => {
                let ups = names.iter().take_while(|name| *name == "super").count();
                let kept = self.path.len().checked_sub(ups)?;
                Some([&self.path[..kept], &names[ups..]].concat())
            }
            child if self.children.iter().any(|known| known == child) => {
                Some([self.path, names].concat())
            }
            _ => None,
        }
    }

    fn tree(&mut self, tree: &UseTree, prefix: &mut Names, passes_on: bool) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.tree(&path.tree, prefix, passes_on);
                prefix.pop();
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.tree(item, prefix, passes_on));
            }
            UseTree::Name(name) => {
                let name = name.ident.to_string();
                self.leaf(&name, &name, prefix, passes_on);
            }
            UseTree::Rename(rename) => {
                let (name, known_as) = (rename.ident.to_string(), rename.rename.to_string());
                self.leaf(&name, &known_as, prefix, passes_on);
            }
            UseTree::Glob(_) => self.imports.extend(self.absolute(prefix)),
        }
    }

    fn leaf(&mut self, name: &str, known_as: &str, prefix: &[String], passes_on: bool) {
        let mut names = prefix.to_vec();
        if name != "self" {
            names.push(name.to_owned());
        }
        let Some(from) = self.absolute(&names) else { return };
        // What comes from another room is an import, passed on or not.
        if !passes_on || from.first() != self.path.first() {
            self.imports.push(from.clone());
        }
        if passes_on {
            self.passed_on.insert(known_as.to_owned(), from);
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let passes_on = !matches!(item.vis, Visibility::Inherited);
        self.tree(&item.tree, &mut Vec::new(), passes_on);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Names = path.segments.iter().map(|part| part.ident.to_string()).collect();
        if names.len() > 1 {
            self.imports.extend(self.absolute(&names));
        }
        visit::visit_path(self, path);
    }
}

/// Whether attributes leave an item to tests and doc tests.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list().ok().filter(|list| list.path.is_ident("cfg"));
        list.is_some_and(|list| {
            let condition = list.tokens.to_string();
            condition == "test" || condition == "doctest" || condition.starts_with("all (test")
        })
    })
}
