//! Rows from Postgres' binary format to JSON: `cargo bench --bench encoder`.
//!
//! Each number is for one row; the mixes are those of the shipped jobs.

use std::collections::BTreeMap;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use preheat::domain::json::{Case, Column, ColumnType, Encoding, Profile, RowEncoder};

fn main() {
    divan::main();
}

/// Rows of one query, each a value for every column.
struct Mix {
    columns: Vec<Column>,
    rows: Vec<Vec<Vec<u8>>>,
}

const ROWS: u64 = 1000;

/// The slots of a day: two uuids, two moments.
#[divan::bench(args = PROFILES)]
fn slots(bencher: Bencher<'_, '_>, profile: &str) {
    let columns = [
        ("id", ColumnType::Uuid),
        ("staff_id", ColumnType::Uuid),
        ("starts_at", ColumnType::Timestamptz),
        ("ends_at", ColumnType::Timestamptz),
    ];
    let row = |n: u64| vec![uuid(n), uuid(n / 16), moment(n), moment(n + 1)];
    measure(bencher, profile, &mix(&columns, row));
}

/// A catalogue: a uuid, texts, a price, a count, a moment.
#[divan::bench(args = PROFILES)]
fn products(bencher: Bencher<'_, '_>, profile: &str) {
    let columns = [
        ("id", ColumnType::Uuid),
        ("category", ColumnType::Text),
        ("sku", ColumnType::Text),
        ("name", ColumnType::Text),
        ("description", ColumnType::Text),
        ("price", ColumnType::Numeric),
        ("stock", ColumnType::Int4),
        ("updated_at", ColumnType::Timestamptz),
    ];
    let row = |n: u64| {
        vec![
            uuid(n),
            text("Dental care"),
            text(&format!("SKU-{n:06}")),
            text(&format!("Enzymatic toothpaste \"fresh\" №{n}")),
            text(&"For dogs and cats of every size, twice a week after the meal.\n".repeat(3)),
            price(n),
            integer(n % 500),
            moment(n * 977),
        ]
    };
    measure(bencher, profile, &mix(&columns, row));
}

/// Staff with their hours, and more, in documents.
#[divan::bench(args = PROFILES)]
fn documents(bencher: Bencher<'_, '_>, profile: &str) {
    let columns = [
        ("id", ColumnType::Uuid),
        ("name", ColumnType::Text),
        ("working_hours", ColumnType::Jsonb),
        ("settings", ColumnType::Jsonb),
    ];
    let row = |n: u64| {
        let days = ["mon", "tue", "wed", "thu", "fri"]
            .map(|day| format!("\"{day}\": [{{\"from\": \"09:00\", \"to\": \"17:30\"}}]"));
        let numbers: Vec<String> = (0..40).map(|m| format!("{}", (n + m) * 37 % 10_007)).collect();
        let settings = format!(
            "{{\"color\": \"#a1b2c3\", \"limits\": [{}], \"ratio\": 0.125, \"about\": \"{}\"}}",
            numbers.join(", "),
            "A long text with a few \\\"quotes\\\" in it. ".repeat(8),
        );
        vec![
            uuid(n),
            text(&format!("Dr. Ångström {n}")),
            document(&format!("{{{}}}", days.join(", "))),
            document(&settings),
        ]
    };
    measure(bencher, profile, &mix(&columns, row));
}

/// Long text of which every tenth character is no ASCII.
#[divan::bench(args = PROFILES)]
fn pages(bencher: Bencher<'_, '_>, profile: &str) {
    let columns = [("slug", ColumnType::Text), ("body", ColumnType::Text)];
    let body = "<p>Für Hunde, Katzen und Ähnliches.</p>\n".repeat(100);
    measure(bencher, profile, &mix(&columns, |n| vec![text(&format!("page-{n}")), text(&body)]));
}

const PROFILES: [&str; 3] = ["drizzle", "node-postgres", "postgres"];

fn measure(bencher: Bencher<'_, '_>, profile: &str, mix: &Mix) {
    let profile = match profile {
        "drizzle" => Profile::Drizzle,
        "node-postgres" => Profile::NodePostgres,
        _ => Profile::Postgres,
    };
    let encoding = Encoding {
        profile,
        case: Case::Keep,
        omit: Vec::new(),
        columns: BTreeMap::new(),
        max_bytes: usize::MAX,
    };
    let Ok(encoder) = RowEncoder::new(&encoding, &mix.columns) else { return };
    let mut out = Vec::new();
    let encode = |out: &mut Vec<u8>| {
        out.clear();
        for row in &mix.rows {
            let value = |index: usize| row.get(index).map(Vec::as_slice);
            let written = encoder.encode(value, out);
            debug_assert!(written.is_ok(), "{written:?}");
        }
    };
    encode(&mut out);
    bencher.counter(ItemsCount::new(ROWS)).counter(BytesCount::new(out.len())).bench_local(|| {
        encode(black_box(&mut out));
    });
}

fn mix(columns: &[(&str, ColumnType)], row: impl Fn(u64) -> Vec<Vec<u8>>) -> Mix {
    let column = |(name, ty): &(&str, ColumnType)| Column { name: (*name).into(), ty: ty.clone() };
    Mix { columns: columns.iter().map(column).collect(), rows: (0..ROWS).map(row).collect() }
}

fn uuid(number: u64) -> Vec<u8> {
    let number = u128::from(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    number.to_be_bytes().to_vec()
}

/// Every half hour of 2026, in microseconds since 2000.
fn moment(number: u64) -> Vec<u8> {
    let microseconds = 820_540_800_000_000 + number % 17_520 * 1_800_000_000;
    microseconds.to_be_bytes().to_vec()
}

fn integer(number: u64) -> Vec<u8> {
    i32::try_from(number).unwrap_or_default().to_be_bytes().to_vec()
}

/// A `numeric(10,2)` below 10,000, with 99 hundredths.
fn price(number: u64) -> Vec<u8> {
    let whole = u16::try_from(number % 9999 + 1).unwrap_or_default();
    let parts = [2, 0, 0, 2, whole, 9900];
    parts.iter().flat_map(|part: &u16| part.to_be_bytes()).collect()
}

fn text(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn document(json: &str) -> Vec<u8> {
    [&[1], json.as_bytes()].concat()
}
