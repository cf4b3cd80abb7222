//! The pages for people: search by number or date, one receipt with what is known about it. Written on the server; nothing comes from elsewhere.

mod html;
mod time;
mod view;
mod words;

use super::Front;
use crate::answer::{Fault, Reply, text_reply};
use crate::disk::Outcome;
use crate::ids::Id;
use crate::limits::LIST_PATHS;
use crate::server::Asked;
use crate::target::{Query, encode_path};
use html::{Page, escape};
use hyper::StatusCode;
use hyper::header::{ACCEPT, CACHE_CONTROL, HeaderValue};

/// Whether somebody reads pages: the request accepts HTML.
pub fn wants_page(asked: &Asked) -> bool {
    let accepts = asked.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts.into_iter().any(|text| text.contains("text/html"))
}

/// Files of the pages.
pub fn asset(path: &str) -> Option<Reply> {
    let (content_type, text) = match path {
        "/style.css" => ("text/css; charset=utf-8", include_str!("style.css")),
        "/print.js" => ("text/javascript; charset=utf-8", include_str!("print.js")),
        "/favicon.svg" | "/favicon.ico" => ("image/svg+xml", include_str!("favicon.svg")),
        _ => return None,
    };
    let mut reply = text_reply(StatusCode::OK, content_type, text.to_owned());
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    Some(reply)
}

impl Front {
    /// `GET /[?date=YYYY-MM-DD[&skip=N]]`: the search, and the receipts of a day.
    pub async fn home(&self, asked: &Asked) -> Outcome<Reply> {
        let query = Query::parse(asked.uri.query())?;
        let page = Page::of(asked, &query);
        let date = query.get("date").unwrap_or_default();
        let mut main = search(&page, "", date);
        if !date.is_empty() {
            let prefix = time::day_prefix(date).ok_or_else(|| Fault::bad("a date looks like 2026-11-23"))?;
            main.push_str(&self.day(&page, date, &prefix, query.number("skip")?.unwrap_or_default()).await?);
        }
        Ok(page.reply(StatusCode::OK, page.words.find, &main))
    }

    async fn day(&self, page: &Page, date: &str, prefix: &str, skip: u64) -> Outcome<String> {
        let words = page.words;
        let list = self.list(prefix, skip).await?;
        let mut rows = String::new();
        for locator in &list.locators {
            let path = locator.path.as_str();
            let link = page.link(&format!("/view/{}", encode_path(path)), &[]);
            rows.push_str(&format!(
                "<tr><td><a href=\"{link}\">{}</a></td><td class=\"path\">{}</td><td class=\"number\">{}</td></tr>\n",
                escape(view::title(path)),
                escape(path),
                locator.seq
            ));
        }
        let mut out = format!("<section class=\"card\"><h2>{} {}</h2>\n", words.receipts_of, escape(date));
        if list.is_damaged {
            out.push_str(&format!("<p class=\"notice warn\" role=\"alert\">{}</p>\n", words.list_damaged));
        }
        if rows.is_empty() {
            out.push_str(&format!("<p>{}</p>\n", words.none_that_day));
        } else {
            out.push_str(&format!(
                "<table><thead><tr><th scope=\"col\">{}</th><th scope=\"col\" class=\"path\">{}</th><th scope=\"col\" class=\"number\">{}</th></tr></thead>\n<tbody>\n{rows}</tbody></table>\n",
                words.number, words.path, words.sequence
            ));
        }
        if list.is_cut {
            let next = (skip + LIST_PATHS as u64).to_string();
            let link = page.link("/", &[("date", date), ("skip", &next)]);
            out.push_str(&format!("<p><a class=\"button plain\" href=\"{link}\">{}</a></p>\n", words.more));
        }
        out.push_str("</section>\n");
        Ok(out)
    }

    /// `GET /view?id=ID`.
    pub async fn view_id(&self, asked: &Asked) -> Outcome<Reply> {
        let query = Query::parse(asked.uri.query())?;
        let id = Id::new(query.get("id").unwrap_or_default().trim())?;
        let wanted = self.locate(&id).await?;
        let image = self.read(wanted, None, true).await?;
        Ok(view::receipt(&Page::of(asked, &query), &image, Some(id.as_str())))
    }

    /// `GET /view/PATH`; PATH may be a locator.
    pub async fn view_path(&self, asked: &Asked, encoded: &str) -> Outcome<Reply> {
        let query = Query::parse(asked.uri.query())?;
        let image = self.read(Self::wanted(encoded)?, None, true).await?;
        Ok(view::receipt(&Page::of(asked, &query), &image, None))
    }
}

fn search(page: &Page, id: &str, date: &str) -> String {
    let words = page.words;
    let hidden = page.hidden_language();
    format!(
        "<section class=\"card search\"><h1>{find}</h1>\n<p class=\"lead\">{lead}</p>\n<div class=\"forms\">\n\
         <form action=\"/view\" method=\"get\" role=\"search\">{hidden}<label for=\"id\">{number}</label>\n\
         <div class=\"field\"><input id=\"id\" name=\"id\" value=\"{id}\" required maxlength=\"200\" autocomplete=\"off\" spellcheck=\"false\" placeholder=\"HT2026112300000042\">\
         <button type=\"submit\">{show}</button></div></form>\n\
         <form action=\"/\" method=\"get\" role=\"search\">{hidden}<label for=\"date\">{day}</label>\n\
         <div class=\"field\"><input id=\"date\" name=\"date\" type=\"date\" value=\"{date}\" required>\
         <button type=\"submit\" class=\"plain\">{list}</button></div></form>\n</div></section>\n",
        find = words.find,
        lead = words.lead,
        number = words.number,
        id = escape(id),
        show = words.show,
        day = words.day,
        date = escape(date),
        list = words.list,
    )
}

/// A fault as a page.
pub fn fault_page(asked: &Asked, fault: &Fault) -> Reply {
    let query = Query::parse(asked.uri.query()).unwrap_or_default();
    let page = Page::of(asked, &query);
    let words = page.words;
    let (title, text) = words.fault(fault.code);
    let kind = if fault.code == "pending" { "wait" } else { "warn" };
    let mut main = format!(
        "<section class=\"card notice {kind}\" role=\"alert\"><h1>{title}</h1>\n<p>{text}</p>\n<p class=\"detail\">{}: <code>{}</code></p></section>\n",
        words.details,
        escape(&fault.message)
    );
    main.push_str(&search(&page, query.get("id").unwrap_or_default(), ""));
    let mut reply = page.reply(fault.status, title, &main);
    if fault.code == "pending" {
        // The receipt is there in a moment: look again by itself.
        reply.headers_mut().insert("refresh", HeaderValue::from_static("2"));
    }
    reply
}
