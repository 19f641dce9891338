//! The report as one self-contained HTML file.

use anyhow::Result;

use super::{charts, report_heading, sections, table::escape_html};
use crate::results::Results;

/// Style sheet of the page.
const STYLE_SHEET: &str = "
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; } p { max-width: 60rem; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #555; max-width: 60rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
td:last-child { white-space: normal; }
";

/// Formats the report as an HTML page with charts and tables.
///
/// # Errors
/// If a chart can't be drawn.
pub fn format_page(results: &Results) -> Result<String> {
    let (title, facts) = report_heading(results);
    let title = escape_html(&title);
    let mut body = format!("<h1>{title}</h1>\n");
    facts.iter().for_each(|fact| body.push_str(&format!("<p>{}</p>\n", escape_html(fact))));
    for chart in charts::all_charts(results)? {
        body.push_str(&format!(
            "<figure>\n{}\n<figcaption>{}</figcaption>\n</figure>\n",
            chart.svg,
            escape_html(&chart.caption)
        ));
    }
    for (section_title, explanation, table) in sections(results).into_iter().filter(|(.., table)| !table.is_empty()) {
        body.push_str(&format!("<h2>{section_title}</h2>\n<p>{}</p>\n{}", escape_html(explanation), table.to_html()));
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE_SHEET}</style>\n</head>\n\
         <body>\n{body}</body>\n</html>\n"
    ))
}
