//! The picture as PNG: the same shapes, pixel by pixel.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use crate::history::History;

use super::scene::{Anchor, Fill, HATCH, HATCH_PAPER, PAPER, Rgb, Scene, Shape};

/// The picture cannot be written as PNG.
#[derive(Debug, thiserror::Error)]
#[error("the picture cannot be encoded: {0}")]
pub struct PngError(#[from] png::EncodingError);

const HEIGHT: RasterHeight = RasterHeight::Size16;
const WEIGHT: FontWeight = FontWeight::Regular;
/// Rows of a letter's raster that are above the base line.
const ASCENT: u32 = 13;
/// Pixels from one line of a hatching to the next, along a row.
const HATCHING: u32 = 6;

/// The heat map as PNG, of all that is kept or of the last `window_ms`; nothing where there is no
/// snapshot. `title` says whose memory it is.
///
/// # Errors
/// [`PngError`]: none that anybody has seen, since it is written to memory.
pub fn png(
    history: &History,
    title: &str,
    window_ms: Option<u64>,
) -> Result<Option<Vec<u8>>, PngError> {
    let Some(scene) = Scene::of(history, title, window_ms) else { return Ok(None) };
    let mut canvas = Canvas::new(scene.width, scene.height);
    for shape in &scene.shapes {
        canvas.draw(shape);
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, scene.width, scene.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&canvas.pixels)?;
    writer.finish()?;
    Ok(Some(bytes))
}

struct Canvas {
    width: u32,
    height: u32,
    /// Red, green and blue of each, row by row.
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(width: u32, height: u32) -> Self {
        let Rgb(red, green, blue) = PAPER;
        let count = width as usize * height as usize;
        Self { width, height, pixels: [red, green, blue].repeat(count) }
    }

    fn pixel(&mut self, x: u32, y: u32) -> Option<&mut [u8]> {
        if x >= self.width || y >= self.height {
            return None;
        }
        let at = (y as usize * self.width as usize + x as usize) * 3;
        self.pixels.get_mut(at..at + 3)
    }

    /// Lays a colour over what is there: 255 covers it.
    fn blend(&mut self, (x, y): (u32, u32), Rgb(red, green, blue): Rgb, cover: u8) {
        let Some(pixel) = self.pixel(x, y) else { return };
        for (part, colour) in pixel.iter_mut().zip([red, green, blue]) {
            let (cover, below) = (u32::from(cover), u32::from(*part));
            *part = ((u32::from(colour) * cover + below * (255 - cover)) / 255) as u8;
        }
    }

    fn draw(&mut self, shape: &Shape) {
        match shape {
            Shape::Area { x, y, width, height, fill } => {
                for row in *y..y + height {
                    for column in *x..x + width {
                        self.blend((column, row), colour(*fill, column, row), 255);
                    }
                }
            }
            Shape::Text { x, y, anchor, colour, text } => {
                let wide = (get_raster_width(WEIGHT, HEIGHT) * text.chars().count()) as u32;
                let start = match anchor {
                    Anchor::Start => *x,
                    Anchor::Middle => x.saturating_sub(wide / 2),
                    Anchor::End => x.saturating_sub(wide),
                };
                self.letters((start, y.saturating_sub(ASCENT)), *colour, text);
            }
        }
    }

    fn letters(&mut self, (x, y): (u32, u32), colour: Rgb, text: &str) {
        let mut left = x;
        for c in text.chars() {
            // The font has ASCII.
            let Some(letter) =
                get_raster(c, WEIGHT, HEIGHT).or_else(|| get_raster('?', WEIGHT, HEIGHT))
            else {
                continue;
            };
            for (row, covers) in (y..).zip(letter.rows()) {
                for (column, cover) in (left..).zip(covers) {
                    self.blend((column, row), colour, *cover);
                }
            }
            left += letter.width() as u32;
        }
    }
}

fn colour(fill: Fill, x: u32, y: u32) -> Rgb {
    match fill {
        Fill::Plain(colour) => colour,
        Fill::Hatched if (x + y).is_multiple_of(HATCHING) => HATCH,
        Fill::Hatched => HATCH_PAPER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::tests::example;
    use crate::history::Limits;

    #[test]
    fn decoded_it_is_the_picture_that_was_meant() {
        let bytes = png(&example(), "Memory of this guest", None).unwrap().unwrap();
        if let Some(path) = std::env::var_os("MEMTIDE_PICTURE_PNG") {
            std::fs::write(path, &bytes).unwrap();
        }
        assert!(bytes.len() < 256 << 10, "{} bytes", bytes.len());
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (1200, 76 + 512 + 6 + 34 + 110 + 44));
        let at = |x: usize, y: usize| -> [u8; 3] {
            let at = (y * 1200 + x) * 3;
            pixels[at..at + 3].try_into().unwrap()
        };
        assert_eq!(at(2, 2), [0xff; 3], "paper");
        // 384 MiB of 4 GiB up from the bottom: hot.
        assert_eq!(at(500, 76 + 518 - 50), [0x96, 0x0d, 0x1c]);
        // At the top: free at first, then stolen.
        assert_eq!(at(130, 78), [0xee, 0xf1, 0xf4]);
        let stolen = [at(900, 78), at(901, 78), at(902, 78)];
        assert!(stolen.contains(&[0xda, 0xe9, 0xf4]), "{stolen:?}");
        assert!(png(&History::new(Limits::HOST), "", None).unwrap().is_none());
    }
}
