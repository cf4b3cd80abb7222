//! A small SVG writer. Every text and attribute value that is not a number passes through [`escape`].

use std::fmt::Write as _;

/// SVG under construction.
pub struct Svg {
    body: String,
}

/// How a text is set.
#[derive(Clone, Copy)]
pub struct Type<'a> {
    /// Font family.
    pub family: &'a str,
    /// Height in pixels.
    pub size: f64,
    /// `#rrggbb`
    pub colour: &'a str,
    /// Bold or not.
    pub bold: bool,
    /// `start`, `middle` or `end`: what `x` means.
    pub anchor: &'static str,
    /// Additional pixels between letters.
    pub spacing: f64,
}

/// Replaces what XML reads as markup, and characters that XML 1.0 cannot carry at all.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            letter if letter.is_control() => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

impl Svg {
    /// An empty drawing of that many pixels.
    pub fn new(width: u32, height: u32) -> Self {
        let body = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n"
        );
        Self { body }
    }

    /// The finished document.
    pub fn finish(mut self) -> String {
        self.body.push_str("</svg>\n");
        self.body
    }

    /// Adds an element; attribute values are escaped.
    pub fn element(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.open(name, attributes);
        self.body.truncate(self.body.len() - 2);
        self.body.push_str("/>\n");
    }

    /// Opens an element that [`Svg::close`] ends.
    pub fn open(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.body.push('<');
        self.body.push_str(name);
        for (attribute, value) in attributes {
            // Writing to a String cannot fail.
            let _ = write!(self.body, " {attribute}=\"{}\"", escape(value));
        }
        self.body.push_str(">\n");
    }

    /// Ends the element `name`.
    pub fn close(&mut self, name: &str) {
        let _ = writeln!(self.body, "</{name}>");
    }

    /// A filled rectangle.
    pub fn rect(&mut self, [x, y, width, height]: [f64; 4], fill: &str) {
        let [x, y, width, height] = [x, y, width, height].map(number);
        let place = [("x", x.as_str()), ("y", &y), ("width", &width), ("height", &height), ("fill", fill)];
        self.element("rect", &place);
    }

    /// A rectangle's outline.
    pub fn frame(&mut self, [x, y, width, height]: [f64; 4], stroke: &str, thickness: f64) {
        let [x, y, width, height, thickness] = [x, y, width, height, thickness].map(number);
        self.element(
            "rect",
            &[
                ("x", &x),
                ("y", &y),
                ("width", &width),
                ("height", &height),
                ("fill", "none"),
                ("stroke", stroke),
                ("stroke-width", &thickness),
            ],
        );
    }

    /// A straight line.
    pub fn line(&mut self, [x1, y1, x2, y2]: [f64; 4], stroke: &str, thickness: f64) {
        let [x1, y1, x2, y2, thickness] = [x1, y1, x2, y2, thickness].map(number);
        self.element(
            "line",
            &[
                ("x1", &x1),
                ("y1", &y1),
                ("x2", &x2),
                ("y2", &y2),
                ("stroke", stroke),
                ("stroke-width", &thickness),
            ],
        );
    }

    /// An outline through points.
    pub fn curve(&mut self, points: impl Iterator<Item = (f64, f64)>, stroke: &str, thickness: f64) {
        let mut path = String::new();
        for (x, y) in points {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{x:.1} {y:.1}");
        }
        let thickness = number(thickness);
        self.element(
            "path",
            &[("d", &path), ("fill", "none"), ("stroke", stroke), ("stroke-width", &thickness)],
        );
    }

    /// One line of text; (x, y) is on its base line.
    pub fn text(&mut self, x: f64, y: f64, style: Type<'_>, text: &str) {
        let [x, y, size, spacing] = [x, y, style.size, style.spacing].map(number);
        self.open(
            "text",
            &[
                ("x", &x),
                ("y", &y),
                ("font-family", style.family),
                ("font-size", &size),
                ("font-weight", if style.bold { "bold" } else { "normal" }),
                ("fill", style.colour),
                ("text-anchor", style.anchor),
                ("letter-spacing", &spacing),
                ("xml:space", "preserve"),
            ],
        );
        // The line break that open() added would be drawn as a space.
        self.body.pop();
        self.body.push_str(&escape(text));
        self.close("text");
    }
}

/// A coordinate with two decimals: short, and the same text on every machine.
pub fn number(value: f64) -> String {
    format!("{value:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_a_text_stays_text() {
        assert_eq!(
            escape("<a href='x'>&\"\u{0}\u{ffff}"),
            "&lt;a href=&apos;x&apos;&gt;&amp;&quot;\u{fffd}\u{fffd}"
        );
        let mut svg = Svg::new(10, 10);
        let style =
            Type { family: "A\"B", size: 1.0, colour: "#000", bold: false, anchor: "start", spacing: 0.0 };
        svg.text(0.0, 0.0, style, "</text><image href=\"/etc/passwd\"/>");
        let document = svg.finish();
        let parsed = resvg::usvg::roxmltree::Document::parse(&document).unwrap();
        let names: Vec<_> = parsed
            .descendants()
            .filter(|node| node.is_element())
            .map(|node| node.tag_name().name())
            .collect();
        assert_eq!(names, ["svg", "text"]);
        assert!(document.contains("&lt;/text&gt;&lt;image"));
    }
}
