//! How the sequences of a step are held.

use std::sync::Arc;

use parking_lot::{ArcMutexGuard, Mutex, RawMutex};

use super::sequence::KvSequence;

/// A sequence as whoever steps it holds it: borrowed, owned, or behind a lock. What both methods return is
/// one and the same sequence, from call to call.
pub trait KvMember {
    /// The sequence.
    fn sequence(&self) -> &KvSequence;
    /// The sequence, to be changed.
    fn sequence_mut(&mut self) -> &mut KvSequence;
}

impl KvMember for KvSequence {
    fn sequence(&self) -> &KvSequence {
        self
    }

    fn sequence_mut(&mut self) -> &mut KvSequence {
        self
    }
}

impl<S: KvMember + ?Sized> KvMember for &mut S {
    fn sequence(&self) -> &KvSequence {
        (**self).sequence()
    }

    fn sequence_mut(&mut self) -> &mut KvSequence {
        (**self).sequence_mut()
    }
}

impl<S: KvMember + ?Sized> KvMember for Box<S> {
    fn sequence(&self) -> &KvSequence {
        (**self).sequence()
    }

    fn sequence_mut(&mut self) -> &mut KvSequence {
        (**self).sequence_mut()
    }
}

/// A sequence by handle: clones are the same sequence, which the last one to go drops.
///
/// For servers that keep their sequences in a map and have a step run elsewhere meanwhile: a
/// [`SharedStep`](super::SharedStep) locks its members for as long as it lasts and borrows nothing.
#[derive(Clone, Debug)]
pub struct SharedSequence(Arc<Mutex<KvSequence>>);

/// A sequence that is locked through its handle.
pub struct SequenceGuard(ArcMutexGuard<RawMutex, KvSequence>);

impl SharedSequence {
    /// A handle on a sequence.
    pub fn new(sequence: KvSequence) -> Self {
        Self(Arc::new(Mutex::new(sequence)))
    }

    /// The sequence, unless a step or another thread has it.
    pub fn try_lock(&self) -> Option<SequenceGuard> {
        self.0.try_lock_arc().map(SequenceGuard)
    }

    /// The sequence, once no step and no other thread has it.
    pub fn lock(&self) -> SequenceGuard {
        SequenceGuard(self.0.lock_arc())
    }
}

impl From<KvSequence> for SharedSequence {
    fn from(sequence: KvSequence) -> Self {
        Self::new(sequence)
    }
}

impl KvMember for SequenceGuard {
    fn sequence(&self) -> &KvSequence {
        &self.0
    }

    fn sequence_mut(&mut self) -> &mut KvSequence {
        &mut self.0
    }
}

impl std::fmt::Debug for SequenceGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

impl std::ops::Deref for SequenceGuard {
    type Target = KvSequence;

    fn deref(&self) -> &KvSequence {
        &self.0
    }
}

impl std::ops::DerefMut for SequenceGuard {
    fn deref_mut(&mut self) -> &mut KvSequence {
        &mut self.0
    }
}
