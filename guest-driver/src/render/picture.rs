//! A picture as PNG with 256 colours. Receipts have few colours and many soft edges: a third of the size, no visible loss.

use resvg::tiny_skia::Pixmap;

/// Colours that share their upper 5 bits a channel.
#[derive(Clone, Copy, Default)]
struct Bin {
    sums: [u64; 3],
    count: u64,
}

const BINS: usize = 1 << 15;
const COLOURS_MAX: usize = 256;

/// Encodes a picture without transparency.
///
/// # Errors
/// What the encoder reports; with a picture in memory that is a defect.
pub fn encode(picture: &Pixmap) -> Result<Vec<u8>, png::EncodingError> {
    let colours = || picture.data().chunks_exact(4).map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    let mut bins = vec![Bin::default(); BINS];
    for colour in colours() {
        let bin = &mut bins[bin_of(colour)];
        bin.count += 1;
        for (sum, channel) in bin.sums.iter_mut().zip(colour) {
            *sum += u64::from(channel);
        }
    }
    let (palette, index_of_bin) = choose_colours(&bins);
    let indexes: Vec<u8> = colours().map(|colour| index_of_bin[bin_of(colour)]).collect();

    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette.concat());
    encoder.set_compression(png::Compression::High);
    // Neighbouring indexes are not neighbouring colours: a filter would only add noise.
    encoder.set_filter(png::Filter::NoFilter);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&indexes)?;
    writer.finish()?;
    Ok(file)
}

fn bin_of([red, green, blue]: [u8; 3]) -> usize {
    usize::from(red >> 3) << 10 | usize::from(green >> 3) << 5 | usize::from(blue >> 3)
}

/// The commonest colours, and for each bin the index of the nearest of them.
fn choose_colours(bins: &[Bin]) -> (Vec<[u8; 3]>, Vec<u8>) {
    let mut used: Vec<usize> = (0..bins.len()).filter(|bin| bins[*bin].count > 0).collect();
    used.sort_by_key(|bin| (std::cmp::Reverse(bins[*bin].count), *bin));
    let palette: Vec<[u8; 3]> = used.iter().take(COLOURS_MAX).map(|bin| mean(&bins[*bin])).collect();
    let mut index_of_bin = vec![0; bins.len()];
    for bin in used {
        let colour = mean(&bins[bin]);
        let nearest = (0_u8..=255).zip(&palette).min_by_key(|(_, other)| distance(colour, **other));
        index_of_bin[bin] = nearest.map_or(0, |(index, _)| index);
    }
    (palette, index_of_bin)
}

fn mean(bin: &Bin) -> [u8; 3] {
    bin.sums.map(|sum| u8::try_from(sum / bin.count.max(1)).unwrap_or(u8::MAX))
}

fn distance(one: [u8; 3], other: [u8; 3]) -> u32 {
    one.into_iter().zip(other).map(|(one, other)| u32::from(one.abs_diff(other)).pow(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use resvg::tiny_skia::{Color, PremultipliedColorU8};

    #[test]
    fn few_colours_are_kept_exactly() {
        let mut picture = Pixmap::new(16, 16).unwrap();
        picture.fill(Color::WHITE);
        picture.pixels_mut()[3] = PremultipliedColorU8::from_rgba(200, 22, 29, 255).unwrap();
        let file = encode(&picture).unwrap();
        let decoded = Pixmap::decode_png(&file).unwrap();
        assert_eq!(decoded.data(), picture.data());
    }
}
