
// Whether query i sees key j, both counted within their segment; shift = keys - queries of the segment.
fn sees(i: i32, j: i32, shift: i32, keys: i32) -> bool {
    let end = select(keys, i + shift + 1, params.causal == 1u);
    return j < end && (params.window == 0u || j >= end - i32(params.window));
}
