//! The page about a campaign shows all that was found, is what browsers take for HTML, and needs nothing
//! but itself.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use iced_x86::Mnemonic;
use scraper::{ElementRef, Html, Selector};
use tregion::campaign::{self, Plan, Progress, Summary};
use tregion::engine::Engine;
use tregion::engine::sabotaged::{Component, Sabotage, Sabotaged, When};
use tregion::engine::silicon::Silicon;
use tregion::guest::Flag;
use tregion::oracle::Judge;
use tregion::report::page;

/// A name that is markup where it is not escaped.
const NAME: &str = "<script>alert('&amp;')</script>";

fn engine(name: &str) -> io::Result<Box<dyn Engine>> {
    if name != NAME {
        return Err(io::Error::other(format!("no engine <{name}>")));
    }
    let sabotage =
        Sabotage { when: When::Contains(Mnemonic::Bswap), component: Component::Flag(Flag::CF) };
    Ok(Box::new(Sabotaged::new(Silicon::named(name)?, sabotage)))
}

/// A campaign of an engine that is wrong, in `folder`.
fn campaign(folder: &Path) -> Summary {
    let plan = Plan {
        engines: vec![NAME.to_owned()],
        seed: 3,
        shard: (1, 1),
        time: None,
        cases: Some(700),
        workers: 2,
        out: Some(folder.to_owned()),
        save_every: Plan::SAVE_EVERY,
        stop_at_first: false,
    };
    let make = || Ok(Judge::new(Silicon::new()?, vec![engine(NAME)?]));
    campaign::run(&plan, &make, &Progress::default()).unwrap()
}

fn all<'a>(page: &'a Html, selector: &str) -> Vec<ElementRef<'a>> {
    page.select(&Selector::parse(selector).unwrap()).collect()
}

fn text(element: ElementRef<'_>) -> String {
    element.text().collect()
}

/// Of `engine: …mnemonic → component` the mnemonic, as listings have it.
fn mnemonic_of(title: &str) -> String {
    let (before, _) = title.split_once(" → ").unwrap();
    match before.rsplit([' ', '…']).next().unwrap() {
        "reservednop" => "nop".to_owned(),
        other => other.to_owned(),
    }
}

/// What is true of every page.
fn assert_whole_in_itself(text: &str) -> Html {
    let page = Html::parse_document(text);
    assert_eq!(page.errors, Vec::<std::borrow::Cow<'_, str>>::new());
    let ids: Vec<&str> = all(&page, "[id]").iter().filter_map(|it| it.attr("id")).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "each id is there once");
    for element in all(&page, "*") {
        let name = element.value().name();
        assert!(!["script", "link", "img", "iframe", "object", "base"].contains(&name), "{name}");
        for (attribute, value) in element.value().attrs() {
            match attribute {
                "href" => assert!(ids.contains(&value.trim_start_matches('#')), "{value}"),
                "xmlns" => {}
                _ => {
                    assert!(!value.contains("//") && !value.contains("url("), "{attribute} {value}")
                }
            }
            assert!(!attribute.starts_with("on") && attribute != "src", "{attribute}");
        }
    }
    let style: String = all(&page, "style").into_iter().map(self::text).collect();
    assert!(!style.is_empty() && !style.contains("url(") && !style.contains("@import"));
    let policy = all(&page, "meta[http-equiv=Content-Security-Policy]");
    assert!(policy[0].attr("content").unwrap().starts_with("default-src 'none'"));
    page
}

#[test]
fn the_page_shows_all_that_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut summary = campaign(folder.path());
    assert!(summary.clusters.len() > 3);
    let shown = page(folder.path(), &engine).unwrap();
    if let Some(file) = std::env::var_os("TREGION_KEEP_REPORT") {
        // To be looked at.
        fs::write(file, &shown).unwrap();
    }
    let html = assert_whole_in_itself(&shown);
    let titles: Vec<String> = all(&html, "article.finding h3").into_iter().map(text).collect();
    assert_eq!(titles.len(), summary.clusters.len());
    for cluster in &summary.clusters {
        assert!(titles.contains(&cluster.key().to_string()), "{}", cluster.key());
    }
    for article in all(&html, "article.finding") {
        let within = |selector: &str| {
            let selector = Selector::parse(selector).unwrap();
            article.select(&selector).map(text).collect::<Vec<_>>()
        };
        let title = within("h3").concat();
        assert_eq!(within(".missing"), Vec::<String>::new(), "{title}");
        let listing = within(".listing tr");
        assert!(
            listing.iter().any(|line| line.contains(&mnemonic_of(&title))),
            "{title}: {listing:?}"
        );
        let marks = within(".states .differs mark").len();
        assert!(marks >= 2, "what differs is marked on both sides: {title}");
        assert!(within(".timeline th").iter().any(|row| row.starts_with("leg 1")), "{title}");
    }
    let verdict = text(all(&html, "h1")[0]);
    assert_eq!(
        verdict,
        format!("{0} unexplained of {0} distinct differences", summary.unexplained)
    );
    assert_eq!(all(&html, ".heat td:not(.none)").is_empty(), summary.form_counts.is_empty());

    // What a known row explains comes behind what nothing explains, however often it was seen.
    let row = tregion::oracle::ACCEPTED[0];
    summary.clusters[0].accepted = Some(vec![row.name.to_owned()]);
    summary.clusters[0].count = 1_000_000;
    let known = summary.clusters[0].key().to_string();
    let text_of = serde_json::to_string(&summary).unwrap();
    fs::write(folder.path().join("summary.json"), text_of).unwrap();
    let html = assert_whole_in_itself(&page(folder.path(), &engine).unwrap());
    assert_eq!(text(*all(&html, "article.finding h3").last().unwrap()), known);
    let blamed: Vec<String> = all(&html, ".blame tr").into_iter().map(text).collect();
    assert!(blamed.iter().any(|line| line.contains(row.name) && line.contains(row.reason)));
}

#[test]
fn what_cannot_be_shown_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let summary = campaign(folder.path());
    let file = |index: usize| {
        let hash = summary.clusters[index].case.as_ref().unwrap();
        folder.path().join(format!("{hash}.case"))
    };
    fs::remove_file(file(0)).unwrap();
    fs::write(file(1), "format = <b>").unwrap();
    let html = assert_whole_in_itself(&page(folder.path(), &|_| engine("none")).unwrap());
    let missing: String = all(&html, ".missing").into_iter().map(text).collect();
    for why in ["No such file", "line 1", "no engine <none>"] {
        assert!(missing.contains(why), "{why}: {missing}");
    }
    assert_eq!(all(&html, "article.finding").len(), summary.clusters.len());
    // How it looked when it was found is in its file.
    assert!(text(all(&html, "article.finding pre")[0]).contains("replay: tregion replay"));
}

#[test]
fn the_command_makes_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let tregion = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tregion"));
        command.current_dir(folder.path()).args(arguments).output().unwrap()
    };
    let engines = "silicon,isolated:silicon";
    let run = ["fuzz", "--engines", engines, "--seconds", "4", "--workers", "1", "--out", "out"];
    assert_eq!(tregion(&run).status.code(), Some(0));
    let made = tregion(&["report", "out", "-o", "report.html"]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let shown = fs::read_to_string(folder.path().join("report.html")).unwrap();
    let html = assert_whole_in_itself(&shown);
    assert_eq!(text(all(&html, "h1")[0]), "No difference found");
    assert_eq!(all(&html, r##".plot svg [stroke="#1F6FB4"]"##).len(), 1, "the line of the rate");
    assert_eq!(String::from_utf8(tregion(&["report", "out"]).stdout).unwrap(), shown);
    for wrong in [&["report", "none"][..], &["report", "out", "-o", "no/where.html"]] {
        let failed = tregion(wrong);
        let told = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert_eq!((failed.status.code(), told.lines().count()), (Some(2), 1), "{told}");
    }
}
