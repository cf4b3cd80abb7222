//! The frame of every page.

use super::words::{Language, Words};
use crate::answer::{Reply, text_reply};
use crate::server::Asked;
use crate::target::{Query, encode};
use hyper::StatusCode;
use hyper::header::{
    ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, VARY,
};

/// Nothing but this server's own style, script and images; no frame around it, no form that leaves it.
const POLICY: &str = "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Text in HTML, also inside quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // A path may change the direction of writing; the rest of the page may not follow it.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}

/// A page in a language.
#[derive(Debug)]
pub struct Page {
    /// Its words.
    pub words: &'static Words,
    language: Language,
    /// The person chose it: links keep it.
    is_chosen: bool,
    /// Path and parameters without the language, for the switch.
    here: (String, Vec<(String, String)>),
}

impl Page {
    /// The page that a request gets.
    pub fn of(asked: &Asked, query: &Query) -> Self {
        let chosen = query.get("lang").and_then(Language::of_code);
        let header = asked.headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        let language = chosen.unwrap_or_else(|| Language::preferred(header.unwrap_or_default()));
        let pairs = query.pairs().filter(|(name, _)| *name != "lang");
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let here = (asked.uri.path().to_owned(), pairs);
        Self { words: language.words(), language, is_chosen: chosen.is_some(), here }
    }

    /// A link that keeps the language; ready for an attribute.
    pub fn link(&self, path: &str, pairs: &[(&str, &str)]) -> String {
        let language = self.is_chosen.then(|| ("lang", self.language.code()));
        link(path, pairs.iter().copied().chain(language))
    }

    /// A form field that keeps the language.
    pub fn hidden_language(&self) -> String {
        match self.is_chosen {
            true => format!("<input type=\"hidden\" name=\"lang\" value=\"{}\">", self.language.code()),
            false => String::new(),
        }
    }

    fn switch(&self) -> String {
        let (path, pairs) = &self.here;
        let mut out = String::new();
        for language in Language::ALL {
            let pairs = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let href = link(path, pairs.chain([("lang", language.code())]));
            let current = if language == self.language { " aria-current=\"true\"" } else { "" };
            let (tag, name) = (language.tag(), language.words().name);
            out.push_str(&format!(
                "<a href=\"{href}\" lang=\"{tag}\" hreflang=\"{tag}\"{current}>{name}</a>"
            ));
        }
        out
    }

    /// The whole page. `main` is HTML, `title` is text.
    pub fn reply(&self, status: StatusCode, title: &str, main: &str) -> Reply {
        let words = self.words;
        let text = format!(
            "<!doctype html>\n<html lang=\"{tag}\">\n<head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title} · {brand}</title>\n<link rel=\"icon\" href=\"/favicon.svg\" type=\"image/svg+xml\">\n\
             <link rel=\"stylesheet\" href=\"/style.css\">\n<script src=\"/print.js\" defer></script></head>\n\
             <body>\n<a class=\"skip\" href=\"#main\">{skip}</a>\n<header class=\"top\"><div class=\"inner\">\n\
             <a class=\"brand\" href=\"{home}\"><span class=\"mark\" aria-hidden=\"true\"></span>{brand}</a>\n\
             <nav class=\"languages\" aria-label=\"{languages}\">{switch}</nav></div></header>\n\
             <main id=\"main\">\n{main}</main>\n<footer><p>{promise}</p></footer>\n</body>\n</html>\n",
            tag = self.language.tag(),
            title = escape(title),
            brand = words.brand,
            skip = words.skip,
            home = self.link("/", &[]),
            languages = words.languages,
            switch = self.switch(),
            promise = words.promise,
        );
        let mut reply = text_reply(status, "text/html; charset=utf-8", text);
        let headers = reply.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(VARY, HeaderValue::from_static("accept-language, accept"));
        reply
    }
}

fn link<'a>(path: &str, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let pairs: Vec<String> =
        pairs.map(|(name, value)| format!("{}={}", encode(name, ""), encode(value, ""))).collect();
    // Two slashes at the start would name another server.
    let path = format!("/{}", path.trim_start_matches('/'));
    escape(&if pairs.is_empty() { path } else { format!("{path}?{}", pairs.join("&")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let hostile = "\"><script>alert('1')</script>&amp;\u{202e}";
        let safe = escape(hostile);
        assert!(!safe.contains(['<', '>', '"', '\'', '\u{202e}']), "{safe}");
        assert_eq!(escape("回单 é"), "回单 é");
        assert_eq!(link("//evil.example/", [("a", "\"&")].into_iter()), "/evil.example/?a=%22%26");
    }
}
