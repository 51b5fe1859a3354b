//! Some blocks of some rows of a weight, in the order in which tiles read them.

use super::super::blocks::BLOCK;
use super::Weight;
use super::tile::Form;
use std::ops::Range;

/// A packed panel.
#[derive(Default)]
pub(super) struct Panel {
    /// `[blocks, words of a block, columns]`: four unsigned integers a word, 128 too large, or two signed ones.
    pub words: Vec<u32>,
    /// `[blocks, columns]`; 0 in columns that are not there.
    pub scales: Vec<f32>,
    /// Which blocks of a row.
    pub blocks: Range<usize>,
    /// Which columns of the result.
    pub columns: Range<usize>,
}

impl Panel {
    /// Packs `blocks` of the weight's rows `columns`, whose rows have `row_blocks` blocks.
    pub fn pack(&mut self, weight: Weight<'_>, form: Form, blocks: Range<usize>, columns: Range<usize>, row_blocks: usize) {
        let (wide, block_words) = (form.columns(), BLOCK / form.per_word());
        self.words.resize(blocks.len() * block_words * wide, 0);
        self.scales.resize(blocks.len() * wide, 0.0);
        if columns.len() < wide {
            self.scales.fill(0.0);
        }
        for (to, column) in columns.clone().enumerate() {
            for (index, block) in blocks.clone().enumerate() {
                let (scale, integers) = weight.block(column * row_blocks + block);
                self.scales[index * wide + to] = scale;
                let words = &mut self.words[index * block_words * wide..][..block_words * wide];
                if form.per_word() == 4 {
                    let from: [u32; BLOCK / 4] = bytemuck::cast(integers);
                    words.iter_mut().skip(to).step_by(wide).zip(from).for_each(|(to, word)| *to = word ^ 0x8080_8080);
                } else {
                    let from: [u32; BLOCK / 2] = bytemuck::cast(integers.map(i16::from));
                    words.iter_mut().skip(to).step_by(wide).zip(from).for_each(|(to, word)| *to = word);
                }
            }
        }
        (self.blocks, self.columns) = (blocks, columns);
    }
}
