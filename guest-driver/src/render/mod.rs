//! Receipts as pictures: a checked record in, a PNG of 50 to 200 KiB out.
//!
//! `words` writes amounts, `record` checks what comes in, `table` reads it from CSV, `layout` and `ornament` draw SVG, this file turns it into PNG. The
//! same record, fonts and program version give the same bytes.

mod fit;
pub mod fonts;
mod form;
mod layout;
mod ornament;
mod picture;
pub mod record;
pub mod sample;
mod svg;
pub mod table;
pub mod words;

use std::path::PathBuf;
use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::fontdb::Database;
use resvg::usvg::{self, GlyphId, Group, Node, Options, Tree};

use fonts::FontError;
use ornament::PALETTES;
use record::ReceiptRecord;

/// Draws receipts. Loading the fonts takes a moment: make one and keep it; it may be shared between threads.
pub struct Renderer {
    fonts: Arc<Database>,
    /// The printed paper in each of the palettes.
    papers: Vec<Pixmap>,
}

/// Why a receipt could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The fonts are not there.
    #[error(transparent)]
    Font(#[from] FontError),
    /// A text has a character that no font can show.
    #[error("no font has the character {0:?}; add a folder with one that has it (--font-dir)")]
    Glyph(String),
    /// The drawing is not valid SVG.
    #[error("cannot draw: {0}")]
    Svg(#[from] usvg::Error),
    /// The picture cannot be held in memory or encoded.
    #[error("cannot make the picture: {0}")]
    Picture(String),
}

impl Renderer {
    /// Loads the fonts from `font_folders`.
    ///
    /// # Errors
    /// [`RenderError::Font`] when one of the fonts is in none of the folders.
    pub fn new(font_folders: &[PathBuf]) -> Result<Self, RenderError> {
        let fonts = fonts::load(font_folders)?;
        let blank = Pixmap::new(layout::WIDTH, layout::HEIGHT)
            .ok_or_else(|| RenderError::Picture("no memory for its size".to_owned()))?;
        let mut renderer = Self { fonts, papers: Vec::new() };
        for palette in &PALETTES {
            let mut paper = blank.clone();
            renderer.draw(&layout::background(palette), &mut paper)?;
            renderer.papers.push(paper);
        }
        Ok(renderer)
    }

    /// The receipt as a PNG file.
    ///
    /// # Errors
    /// [`RenderError::Glyph`] when a text has a character that no font can show: a blank would falsify the receipt.
    pub fn render(&self, record: &ReceiptRecord) -> Result<Vec<u8>, RenderError> {
        let index = layout::palette_index(&record.text().bank_name);
        let (Some(palette), Some(paper)) = (PALETTES.get(index), self.papers.get(index)) else {
            return Err(RenderError::Picture(format!("no palette {index}")));
        };
        let mut picture = paper.clone();
        self.draw(&layout::face(record, palette), &mut picture)?;
        picture::encode(&picture).map_err(|error| RenderError::Picture(error.to_string()))
    }

    fn draw(&self, document: &str, picture: &mut Pixmap) -> Result<(), RenderError> {
        let options = Options { fontdb: Arc::clone(&self.fonts), ..Options::default() };
        let tree = Tree::from_str(document, &options)?;
        if let Some(missing) = missing_glyph(tree.root()) {
            return Err(RenderError::Glyph(missing));
        }
        resvg::render(&tree, Transform::default(), &mut picture.as_mut());
        Ok(())
    }
}

/// The first piece of text that was laid out with a font's empty box.
fn missing_glyph(group: &Group) -> Option<String> {
    group.children().iter().find_map(|node| match node {
        Node::Group(group) => missing_glyph(group),
        Node::Text(text) => text
            .layouted()
            .iter()
            .flat_map(|span| &span.positioned_glyphs)
            .find(|glyph| glyph.id == GlyphId(0))
            .map(|glyph| glyph.text.clone()),
        Node::Path(_) | Node::Image(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::record::RawRecord;
    use super::sample::sample;
    use super::*;

    fn renderer() -> Renderer {
        Renderer::new(&[PathBuf::from(fonts::SYSTEM_FONT_DIR)]).unwrap()
    }

    fn render(renderer: &Renderer, raw: RawRecord) -> Result<Vec<u8>, RenderError> {
        renderer.render(&ReceiptRecord::try_from(raw).unwrap())
    }

    #[test]
    fn receipts_are_pictures_of_50_to_200_kib_and_the_same_every_time() {
        let (first, second) = (renderer(), renderer());
        for raw in sample(6) {
            let picture = render(&first, raw.clone()).unwrap();
            assert!((50 * 1024..=200 * 1024).contains(&picture.len()), "{} bytes", picture.len());
            assert_eq!(picture, render(&second, raw).unwrap());
        }
    }

    #[test]
    fn the_longest_record_is_drawn_and_hostile_text_is_only_text() {
        let raw = RawRecord {
            payer_name: "</text><image href=\"file:///etc/passwd\"/>&amp;<!--".into(),
            payee_name: "有限公司".repeat(12),
            payee_bank: "示范支行".repeat(12),
            purpose: "采购".repeat(30),
            amount: "7777777777777.77".into(),
            bank_name: "银行".repeat(12),
            ..sample(1).next().unwrap()
        };
        let picture = render(&renderer(), raw).unwrap();
        assert!((50 * 1024..=200 * 1024).contains(&picture.len()), "{} bytes", picture.len());
    }

    #[test]
    fn a_character_that_no_font_has_is_an_error() {
        let raw = RawRecord { payee_name: "Name \u{10900}".into(), ..sample(1).next().unwrap() };
        let error = render(&renderer(), raw).unwrap_err().to_string();
        assert!(error.contains('\u{10900}'), "{error}");
    }
}
