//! Each bad input gives its error and leaves the output alone. What attention computes is tested by the
//! suite of all backends, `tests/attend.rs`.

use super::{AttendError, Attention, Batch, Head, Output, Reduce, SlotScores, Span};
use crate::{
    attend::{CpuAttention, Reference},
    base::{Channels, LayerShape, simd::Isa},
    format::{PageFormat, PageLayout, SlotFormat},
    store::HostStore,
};

/// Runs both backends on a batch with `heads`, tokens, and buffer lengths made by `f`.
fn refuse(f: impl Fn(&mut Case)) -> AttendError {
    let layer = LayerShape::new(2, 4, 64).unwrap();
    let layout = PageLayout::new(PageFormat::default(), 64, 4096).unwrap();
    let mut case = Case {
        layer,
        layout,
        pages: vec![0, 1, 2],
        slots: 40,
        heads: 2,
        tokens: 3,
        lens: [3 * 4 * 64, 3 * 4 * 64, 3 * 4],
    };
    assert_eq!(case.run(), Ok(()), "the case is good before it is spoilt");
    f(&mut case);
    case.run().unwrap_err()
}

struct Case {
    layer: LayerShape,
    layout: PageLayout,
    pages: Vec<u32>,
    slots: usize,
    heads: usize,
    tokens: usize,
    /// q, out, lse
    lens: [usize; 3],
}

impl Case {
    fn run(&self) -> Result<(), AttendError> {
        let store = HostStore::new(3, 4096).unwrap();
        let head = Head { pages: &self.pages, slots: self.slots, layout: &self.layout };
        let heads = vec![head; self.heads];
        let spans = [Span { tokens: self.tokens, heads: &heads }];
        let q = vec![0.0; self.lens[0]];
        let batch = Batch { layer: &self.layer, spans: &spans, q: &q };
        let backends: [&dyn Attention<HostStore>; 2] = [&Reference, &CpuAttention::new()];
        let results = backends.map(|backend| {
            let mut out = vec![7.0; self.lens[1]];
            let mut lse = vec![7.0; self.lens[2]];
            let mut scores = SlotScores::new(1, Reduce::Group);
            let output = Output { out: &mut out, lse: &mut lse, scores: Some(&mut scores) };
            let result = backend.attend(&store, &batch, output);
            if result.is_err() {
                assert!(out.iter().chain(&lse).all(|&x| x == 7.0));
            }
            result
        });
        let [reference, cpu] = results;
        assert_eq!(reference, cpu);
        cpu
    }
}

#[test]
fn lengths() {
    for (i, what) in ["q", "out", "lse"].into_iter().enumerate() {
        let error = refuse(|case| case.lens[i] += 1);
        assert!(matches!(error, AttendError::WrongLength { what: w, .. } if w == what), "{error}");
    }
    assert_eq!(refuse(|case| case.lens[2] = 0).to_string(), "lse has 0 values, expected 12");
    assert!(matches!(refuse(|case| case.tokens = 4), AttendError::WrongLength { what: "q", .. }));
    // Their rows overflow, or the values of these.
    for tokens in [usize::MAX / 2, usize::MAX / 8] {
        let huge = refuse(|case| case.tokens = tokens);
        assert_eq!(huge, AttendError::TooLarge { tokens });
    }
}

#[test]
fn tables() {
    let heads = AttendError::WrongHeads { span: 0, got: 1, expected: 2 };
    assert_eq!(refuse(|case| case.heads = 1), heads);
    let page = AttendError::NoSuchPage { span: 0, head: 0, page: 3, pages: 3 };
    assert_eq!(refuse(|case| case.pages[1] = 3), page);
    assert!(matches!(
        refuse(|case| case.slots = 49),
        AttendError::TooFewPages { slots: 49, pages: 3, page_slots: 16, .. }
    ));
    assert!(matches!(refuse(|case| case.slots = usize::MAX), AttendError::TooFewPages { .. }));
}

#[test]
fn layouts() {
    let layout = |head_dim, bytes| PageLayout::new(PageFormat::default(), head_dim, bytes).unwrap();
    let error = refuse(|case| case.layout = layout(128, 4096));
    let (wide, layer) = (Channels::from(128), Channels::from(64));
    let wrong = AttendError::WrongChannels { span: 0, head: 0, layout: wide, layer };
    assert_eq!(error, wrong);
    for channels in [Channels::new(64, 32), Channels::v_in_k(64, 64)] {
        let layout = PageLayout::new(PageFormat::default(), channels, 4096).unwrap();
        let error = refuse(|case| case.layout = layout);
        assert_eq!(error, AttendError::WrongChannels { span: 0, head: 0, layout: channels, layer });
    }
    let error = refuse(|case| case.layout = layout(64, 8192));
    assert_eq!(error, AttendError::WrongPageBytes { span: 0, head: 0, layout: 8192, store: 4096 });
    for forge in [
        (|l| l.slots += 1) as fn(&mut PageLayout),
        |l| l.v.payload += 16,
        |l| l.k.payload_stride *= 2,
        |l| l.format.k = SlotFormat::F32,
        |l| l.slots = 0,
    ] {
        let error = refuse(|case| forge(&mut case.layout));
        assert_eq!(error, AttendError::ForgedLayout { span: 0, head: 0 });
    }
}

#[test]
fn instruction_sets() {
    let foreign = if cfg!(target_arch = "x86_64") { Isa::Neon } else { Isa::Avx2 };
    assert_eq!(CpuAttention::with_isa(foreign).unwrap_err(), AttendError::NoSuchIsa(foreign));
}

/// Every head of every span is checked, not only the first with a layout of its own.
#[test]
fn heads_after_good_ones() {
    let layer = LayerShape::new(2, 2, 64).unwrap();
    let of = |format| PageLayout::new(PageFormat::both(format), 64, 4096).unwrap();
    let (f16, i8) = (of(SlotFormat::F16), of(SlotFormat::I8));
    let forged = PageLayout { slots: f16.slots + 1, ..f16 };
    let other = PageLayout::new(PageFormat::default(), 128, 4096).unwrap();
    let head = |layout, page| Head { pages: page, slots: 5, layout };
    let store = HostStore::new(3, 4096).unwrap();
    for place in 0..4 {
        let refused = |bad: Head<'_>| {
            // Good layouts differ, so that each is one that was not looked at just before.
            let mut heads = [&f16, &i8, &f16, &i8].map(|layout| head(layout, &[2]));
            heads[place] = bad;
            let spans =
                [Span { tokens: 1, heads: &heads[..2] }, Span { tokens: 1, heads: &heads[2..] }];
            let q = [0.0; 256];
            let batch = Batch { layer: &layer, spans: &spans, q: &q };
            let (mut out, mut lse) = ([0.0; 256], [0.0; 4]);
            let output = Output { out: &mut out, lse: &mut lse, scores: None };
            CpuAttention::new().attend(&store, &batch, output)
        };
        let (span, head_) = (place / 2, place % 2);
        assert_eq!(refused(head(&f16, &[0])), Ok(()));
        let forgery = AttendError::ForgedLayout { span, head: head_ };
        assert_eq!(refused(head(&forged, &[0])), Err(forgery));
        let (layout, of) = (Channels::from(128), Channels::from(64));
        let dims = AttendError::WrongChannels { span, head: head_, layout, layer: of };
        assert_eq!(refused(head(&other, &[0])), Err(dims));
        let page = AttendError::NoSuchPage { span, head: head_, page: 3, pages: 3 };
        assert_eq!(refused(head(&i8, &[3])), Err(page));
        let (slots, pages) = (5, 0);
        let few =
            AttendError::TooFewPages { span, head: head_, slots, pages, page_slots: i8.slots };
        assert_eq!(refused(head(&i8, &[])), Err(few));
    }
}
