//! Artefacts on demand.
