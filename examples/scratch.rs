//! scratch
use tregion::{campaign::*, engine::silicon::Silicon, oracle::Judge};
fn main() {
    let secs: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let workers: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let plan = Plan {
        engines: vec!["silicon#2".into()],
        seed: 1,
        shard: (1, 1),
        time: Some(std::time::Duration::from_secs(secs)),
        cases: None,
        workers,
        out: Some("/tmp/camp".into()),
    };
    let s = run(
        &plan,
        &|| Ok(Judge::new(Silicon::new()?, vec![Box::new(Silicon::named("silicon#2")?)])),
        &Progress::default(),
    )
    .unwrap();
    println!("{}", s.text());
}
