//! The names of one kernel: registers, labels, variables, special registers.

use std::collections::HashMap;

use crate::ptxvm::{
    ast::{Entry, Scope},
    inst::Special,
    types::Ty,
};

/// A module-level or kernel-level variable that a name can stand for.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Its address in its own state space.
    Address(u64),
    Param(u64),
}

/// All names of one kernel.
pub(super) struct Names {
    pub regs: Vec<HashMap<String, (u32, Ty)>>,
    pub labels: Vec<HashMap<String, u32>>,
    pub targets: Vec<HashMap<String, Vec<String>>>,
    pub parents: Vec<Option<usize>>,
    pub places: HashMap<String, Place>,
    pub specials: Vec<(Special, u32)>,
    pub registers: u32,
    pub predicates: u32,
}

impl Names {
    pub fn new(entry: &Entry) -> Names {
        let (mut registers, mut predicates) = (0, 0);
        let mut regs = Vec::new();
        for scope in &entry.scopes {
            let mut map = HashMap::new();
            for (name, ty) in &scope.regs {
                let n = if *ty == Ty::Pred { &mut predicates } else { &mut registers };
                map.insert(name.clone(), (*n, *ty));
                *n += 1;
            }
            regs.push(map);
        }
        let labels = |s: &Scope| {
            s.labels.iter().map(|(n, at)| (n.clone(), *at as u32)).collect::<HashMap<_, _>>()
        };
        Names {
            regs,
            labels: entry.scopes.iter().map(labels).collect(),
            targets: entry.scopes.iter().map(|s| s.targets.iter().cloned().collect()).collect(),
            parents: entry.scopes.iter().map(|s| s.parent).collect(),
            places: HashMap::new(),
            specials: Vec::new(),
            registers,
            predicates,
        }
    }

    pub fn find<'m, T>(
        &self,
        maps: &'m [HashMap<String, T>],
        scope: usize,
        name: &str,
    ) -> Option<&'m T> {
        let mut at = Some(scope);
        while let Some(s) = at {
            if let Some(v) = maps[s].get(name) {
                return Some(v);
            }
            at = self.parents[s];
        }
        None
    }
}

/// The special register of this name, if it is constant for a thread.
pub(super) fn special(name: &str) -> Option<Special> {
    let axis = |s: &str| ["x", "y", "z"].iter().position(|a| *a == s);
    if let Some((base, a)) = name.split_once('.') {
        let axis = axis(a)?;
        return Some(match base {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" | "%clusterid" => Special::Ctaid(axis),
            "%nctaid" | "%nclusterid" => Special::Nctaid(axis),
            "%cluster_ctaid" => Special::Zero,
            "%cluster_nctaid" => Special::One,
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Nwarp,
        "%lanemask_eq" => Special::MaskEq,
        "%lanemask_lt" => Special::MaskLt,
        "%lanemask_le" => Special::MaskLe,
        "%lanemask_gt" => Special::MaskGt,
        "%lanemask_ge" => Special::MaskGe,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%smid" | "%gridid" | "%cluster_ctarank" => Special::Zero,
        "%nsmid" | "%cluster_nctarank" => Special::One,
        _ => return None,
    })
}
