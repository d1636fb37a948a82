//! The house stands as docs/design.md draws it: imports point down its floors, inside a floor a thing is
//! imported from the file that defines it, and but for the rooms listed here no files import each other
//! in a circle.

#[path = "floors/modules.rs"]
mod modules;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use modules::{Modules, Names};

/// Files that tie the crate together stand above all floors.
fn is_roof(module: &[String]) -> bool {
    module.is_empty()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn modules() -> Modules {
    Modules::read(&root().join("src"))
}

/// The floors of the drawing under "Floors", from the top; what stands on one line is one floor.
fn floors() -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("docs/design.md")).unwrap();
    let section = text.split("## Floors").nth(1).expect("a section on floors");
    let drawing = section.split("```text").nth(1).and_then(|rest| rest.split("```").next());
    let floor = |line: &str| -> Vec<String> {
        let words = line.split_whitespace().map_while(|word| word.strip_suffix('/'));
        words.map(str::to_owned).collect()
    };
    drawing.expect("a drawing of the floors").lines().map(floor).filter(|f| !f.is_empty()).collect()
}

#[test]
fn the_drawing_has_every_room_of_the_house() {
    let drawn: BTreeSet<String> = floors().concat().into_iter().collect();
    let built: BTreeSet<String> =
        modules().0.keys().filter(|path| path.len() == 1).map(|path| path[0].clone()).collect();
    assert_eq!(drawn, built);
}

#[test]
fn imports_point_down_the_floors() {
    let floors = floors();
    let height = |room: &str| floors.iter().position(|floor| floor.iter().any(|r| r == room));
    let modules = modules();
    let mut wrong = Vec::new();
    for (path, module) in modules.0.iter().filter(|(path, _)| !is_roof(path)) {
        for import in &module.imports {
            let Some(room) = import.first() else {
                wrong.push(format!("{} imports from the roof", module.file.display()));
                continue;
            };
            let (from, to) = (height(&path[0]), height(room));
            if path[0] != *room && (from.is_none() || to.is_none() || from >= to) {
                wrong.push(format!("{} imports {}", module.file.display(), import.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that do not point down:\n{}", wrong.join("\n"));
}

#[test]
fn a_thing_is_imported_from_where_it_is_defined() {
    let modules = modules();
    let mut wrong = Vec::new();
    for (path, module) in modules.0.iter().filter(|(path, _)| !is_roof(path)) {
        for import in &module.imports {
            // A folder's own files do not go through the folder's door.
            let home = modules.home(import);
            if home.through.iter().any(|door| !door.is_empty() && path.starts_with(door)) {
                let (file, home) = (module.file.display(), home.module.join("::"));
                wrong.push(format!("{file} imports {}, which is {home}'s", import.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "imports through the folder's own door:\n{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let modules = modules();
    let edges: BTreeMap<&Names, BTreeSet<Names>> = (modules.0.iter())
        .filter(|(path, _)| !is_roof(path))
        .map(|(path, module)| {
            let homes = module.imports.iter().map(|import| modules.home(import).module);
            (path, homes.filter(|home| home != path && !is_roof(home)).collect())
        })
        .collect();
    let reach: BTreeMap<&Names, BTreeSet<&Names>> =
        edges.keys().map(|path| (*path, reached(&edges, path))).collect();
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for (path, to) in reach.iter().filter(|(path, to)| to.contains(*path)) {
        let members: Vec<&Names> =
            to.iter().copied().filter(|other| reach[other].contains(path)).collect();
        let ties = |member: &&Names| {
            let to = edges[*member].iter().filter(|to| members.contains(to));
            let to: Vec<String> = to.map(|to| to.join("::")).collect();
            format!("  {} -> {}", member.join("::"), to.join(", "))
        };
        circles.insert(members.iter().map(ties).collect());
    }
    let circles: Vec<String> = circles.iter().map(|ties| ties.join("\n")).collect();
    assert!(circles.is_empty(), "files that import each other:\n{}", circles.join("\n\n"));
}

/// What the imports of `from` lead to, directly or not.
fn reached<'a>(
    edges: &'a BTreeMap<&Names, BTreeSet<Names>>,
    from: &'a Names,
) -> BTreeSet<&'a Names> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(at) = open.pop() {
        open.extend(edges[at].iter().filter(|to| seen.insert(*to)));
    }
    seen
}
