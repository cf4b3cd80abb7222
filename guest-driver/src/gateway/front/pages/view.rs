//! One receipt on a page.

use super::html::{Page, escape};
use super::time::utc;
use crate::answer::Reply;
use crate::disk::Image;
use crate::front::image::{content_type, file_name};
use crate::target::encode_path;
use hyper::StatusCode;
use receipt_store::hex;

/// What a receipt is called: the name of its file, without the ending.
pub fn title(path: &str) -> &str {
    let name = file_name(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| if stem.is_empty() { name } else { stem })
}

/// The page of a receipt that was read and verified.
pub fn receipt(page: &Page, image: &Image, id: Option<&str>) -> Reply {
    let words = page.words;
    let header = &image.stat.header;
    let path = image.stat.path.as_str();
    let title = id.unwrap_or_else(|| title(path));
    // The very version that was verified here, and no other bytes.
    let locator = encode_path(&image.stat.locator().to_string());
    let source = format!("/receipts/{locator}?hash={}", hex(&header.data_hash));
    let kind = content_type(&image.data);
    let mut main = format!(
        "<article class=\"card receipt\">\n<header><div><p class=\"kicker\">{receipt}</p><h1>{}</h1></div>\n\
         <p class=\"badge\"><span aria-hidden=\"true\">✓</span> {verified}</p></header>\n",
        escape(title),
        receipt = words.receipt,
        verified = words.verified,
    );
    if kind.starts_with("image/") {
        main.push_str(&format!(
            "<figure><img src=\"{source}\" alt=\"{} {}\"></figure>\n",
            words.image_of,
            escape(title)
        ));
    } else {
        main.push_str(&format!(
            "<p class=\"notice\">{} <a href=\"{source}\">{}</a></p>\n",
            words.no_picture, words.open
        ));
    }
    main.push_str(&format!(
        "<p class=\"actions\"><a class=\"button\" href=\"{source}&amp;download=1\" download>{download}</a>\n\
         <button type=\"button\" class=\"plain\" id=\"print\" hidden>{print}</button></p>\n",
        download = words.download,
        print = words.print,
    ));
    main.push_str(&format!("<p class=\"proof\">{}</p>\n<dl>\n", words.verified_how));
    let facts = [
        (words.path, escape(path)),
        (words.hash, hash(&hex(&header.data_hash))),
        (words.sequence, header.seq.to_string()),
        (words.version, header.version.to_string()),
        (words.stored_at, utc(header.recorded_at_ms)),
        (words.size, format!("{} {}", header.data_len, words.bytes)),
        (words.kind, kind.to_owned()),
    ];
    for (name, value) in facts {
        main.push_str(&format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n"));
    }
    main.push_str("</dl>\n</article>\n");
    page.reply(StatusCode::OK, title, &main)
}

/// A hash in groups of eight, each of which stays on one line.
fn hash(hex: &str) -> String {
    let groups: Vec<&str> =
        (0..hex.len()).step_by(8).map(|at| hex.get(at..at + 8).unwrap_or_default()).collect();
    format!("<code class=\"hash\">{}</code>", groups.join("<wbr>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles() {
        for (path, name) in
            [("2026/11/HT42.png", "HT42"), ("HT42", "HT42"), ("a/.png", ".png"), ("a/b.c.pdf", "b.c")]
        {
            assert_eq!(title(path), name);
        }
    }
}
