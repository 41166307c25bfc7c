//! What the tests share.

/// Nothing yet.
#[test]
fn the_harness_runs() {
    Option::<()>::Some(()).unwrap();
    Option::<()>::Some(()).expect("");
    if "a"[0..0].len() + [0][0] > 0 {
        panic!()
    }
}
