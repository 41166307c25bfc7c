//! The types of the parity test and their values, as Postgres reads them.

use preheat::domain::json::ColumnType;

/// A type and some of its values.
pub(crate) struct Case {
    /// The name of its tables, and of its column in the npm packages' schema.
    pub(crate) name: &'static str,
    /// Its name in SQL.
    pub(crate) sql: &'static str,
    pub(crate) ty: ColumnType,
    pub(crate) values: Vec<String>,
}

fn case<V: Into<String>>(name: &'static str, values: impl IntoIterator<Item = V>) -> Case {
    let values = values.into_iter().map(Into::into).collect();
    Case { name, sql: name, ty: ColumnType::from_name(name), values }
}

/// What must exist before the tables.
pub(crate) const SETUP: &str = r#"
    create type mood as enum ('sad', 'it''s "ok"', 'back\slash', 'null', 'a b', 'ünï', '');
    create domain positive as int4 check (value > 0);
    create domain label as text;
    create domain twice as label;
    create type span as range (subtype = text);
"#;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = numbers();
    cases.extend(texts());
    cases.extend(times());
    cases.extend(documents());
    cases.extend(others());
    cases.extend(ranges());
    cases
}

/// The type of the extension, if it is installed.
pub(crate) fn citext() -> Case {
    case("citext", ["", "MiXed", "a\"b\\c", "null", "x,y", "{}", "it's \u{1F600}"])
}

fn numbers() -> Vec<Case> {
    let mut random = Random(7);
    let mut float4: Vec<String> = words(
        "0 -0 1 -1.5 0.1 1e-5 1e-4 0.00012345 123456 1234567 1e6 1e5 999999 16777216 16777217 \
         33554448 33554450 33554452 67108872 9.5367431640625e-07 NaN Infinity -Infinity 1e-45 \
         1.1754944e-38 1.17549421e-38 3.4028235e38 8388608 4.7019774e-38 1e10 1.5e-10",
    );
    // Every power of two is nearer to its lower neighbour than to its upper one.
    float4.extend((-149..128).map(|power| format!("{:e}", 2_f64.powi(power))));
    float4.extend((0..2000).map(|_| format!("{:e}", random.float4())));
    float4.extend((0..500).map(|_| ((random.next() % 100_000_000) * 4).to_string()));
    let mut float8: Vec<String> = words(
        "0 -0 1 -1.5 0.1 0.3 1e-5 1e-4 0.00012345 123456789012345 1234567890123456 1e14 1e15 1e16 \
         1e20 1e21 1e22 1e23 9007199254740991 9007199254740992 9007199254740993 \
         5.684341886080802e-14 NaN Infinity -Infinity 5e-324 2.2250738585072014e-308 \
         2.225073858507201e-308 1.7976931348623157e308 -1.7976931348623157e308 4.35 1e-7 1.5e-10",
    );
    float8.extend((-1074..1024).map(|power| format!("{:e}", 2_f64.powi(power))));
    float8.extend((0..2000).map(|_| format!("{:e}", random.float8())));
    float8.extend((0..500).map(|_| (random.next() >> 3).to_string()));
    let mut numeric: Vec<String> = words(
        "0 0.00 -0.1 1 -1 1.0 1.50 10000 10001 100000000 0.0001 0.00010001 0.00000000000000000001 \
         -12345678901234567890.123456789 12345678901234567890 9007199254740993 99999999 0.9999 \
         NaN Infinity -Infinity 1e400 -1e400 1e-400 -1e-400 1e308 1.8e308 1e131071 1e-16383 \
         0.00000001 5e-324 2e-324 -2e-324",
    );
    numeric.push(format!("{}.{}", "9".repeat(500), "8".repeat(500)));
    numeric.extend((0..2000).map(|_| random.numeric()));
    vec![
        case("bool", ["true", "false"]),
        case("int2", ["0", "-1", "32767", "-32768"]),
        case("int4", ["0", "-1", "2147483647", "-2147483648"]),
        case(
            "int8",
            words(
                "0 -1 9007199254740991 9007199254740992 9007199254740993 -9007199254740993 \
                 9223372036854775807 -9223372036854775808 1234567890123456789",
            ),
        ),
        case("oid", ["0", "1", "4294967295"]),
        case("float4", float4),
        case("float8", float8),
        case("numeric", numeric),
    ]
}

fn texts() -> Vec<Case> {
    let mut hostile: Vec<String> = [
        "",
        "plain",
        "NULL",
        "null",
        "\"quoted\"",
        "back\\slash",
        "\\\\",
        "\\u0041",
        "a,b",
        "{a}",
        "[1]",
        " leading and trailing ",
        "it's",
        "</script><!--",
        "\u{2028}\u{2029}",
        "\u{1F600}\u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467}",
        "ünïcödé \u{FFFF} \u{10FFFF} \u{FEFF}",
        "\u{7f}\u{80}\u{9f}\u{a0}",
        "123",
        "true",
        "2026-03-01T00:00:00.000Z",
    ]
    .map(str::to_owned)
    .to_vec();
    hostile.push((1..=0x200).filter_map(char::from_u32).collect());
    for length in 0..40 {
        // An escape at every position of the words that the encoder reads at once.
        hostile.push(format!("{}\n{}", "x".repeat(length), "y".repeat(40 - length)));
        hostile.push(format!("{}é{}", "x".repeat(length), "y".repeat(40 - length)));
        hostile.push("z".repeat(length));
    }
    let bpchar = ["", "a", "a b", "ab\"\\", "\u{1F600}"];
    let name = ["plain", "two words", "quo\"te", "back\\slash", "null"];
    let bytes = ["", "a", "\\", "\"", "{", ",", " ", "\u{1}", "\u{7f}", "\\200", "\\377"];
    vec![
        case("text", hostile.clone()),
        case("varchar", hostile),
        Case { sql: "char(5)", ..case("bpchar", bpchar) },
        case("name", name),
        Case {
            sql: "mood",
            ty: ColumnType::Enum,
            ..case("mood", ["sad", "it's \"ok\"", "back\\slash", "null", "a b", "ünï", ""])
        },
        case("xml", ["<a/>", "<a b=\"c\">d &amp; é</a>", "text"]),
        Case { sql: "\"char\"", ty: ColumnType::Char, ..case("single_byte", bytes) },
        Case {
            ty: ColumnType::Domain(Box::new(ColumnType::Int4)),
            ..case("positive", ["1", "2147483647"])
        },
        Case {
            ty: ColumnType::Domain(Box::new(ColumnType::Text)),
            ..case("label", ["a", "q\"b\\", "NULL", ""])
        },
        Case {
            ty: ColumnType::Domain(Box::new(ColumnType::Domain(Box::new(ColumnType::Text)))),
            ..case("twice", ["a", "q\"b\\"])
        },
    ]
}

fn times() -> Vec<Case> {
    let dates: Vec<String> = lines(
        "2026-03-01|1970-01-01|1969-12-31|2000-01-01|2000-02-29|1900-02-28|infinity|-infinity\
         |0001-01-01|0004-02-29|0012-12-31|0013-01-01|0031-12-31|0032-02-29|0049-12-31|0050-01-01\
         |0096-02-29|0099-12-31|0100-01-01|0999-12-31|9999-12-31|10000-01-01|99999-12-31\
         |275760-09-13|275760-09-14|0001-12-31 BC|0001-02-29 BC|0001-03-01 BC|0001-01-01 BC\
         |0005-02-29 BC|0044-03-15 BC|0101-01-01 BC|4713-01-01 BC",
    );
    let times = [
        "",
        " 00:00:00",
        " 23:59:59.999999",
        " 12:30:00.1",
        " 12:30:00.000001",
        " 04:05:06.789012",
        " 23:59:59.0005",
    ];
    // Every date with every time of day, the era last.
    let moments = dates
        .iter()
        .flat_map(|date| {
            let (day, era) = date.split_once(' ').unwrap_or((date, ""));
            let times = if date.ends_with("infinity") { &times[..1] } else { &times[1..] };
            times.iter().map(move |time| format!("{day}{time} {era}").trim().to_owned())
        })
        .chain(["294276-12-31 23:59:59.999999".to_owned(), "275760-09-13 00:00:00.001".to_owned()])
        .collect::<Vec<_>>();
    let mut random = Random(11);
    // Every month of the first thousand years, in which drizzle-orm's dates are strange, and moments from
    // year 1 to 9999.
    let months = (0..12_000)
        .map(|month| format!("{:04}-{:02}-{:02}", month / 12 + 1, month % 12 + 1, month % 28 + 1));
    let moments: Vec<String> =
        moments.into_iter().chain(months).chain((0..1000).map(|_| random.moment())).collect();
    let mut intervals: Vec<String> = lines(
        "0|1 second|-1 second|0.000001 seconds|-0.000001 seconds|1.5 seconds|1 year|-1 year|1 mon\
         |13 mons|-13 mons|1 day|2 days|-1 day|1 day -00:00:01|-1 day 00:00:01|-1 year 1 mon\
         |-1 mon 2 days -3 hours|1 year -2 mons 3 days -04:05:06.789|-1 year 2 days 03:04:05\
         |100:00:00|-2562047788:00:54.775807|178956970 years 7 mons|-178956970 years\
         |2147483647 days|-2147483648 days|00:59:00|00:00:59.999999|12:00:00.123|12:00:00.120000\
         |-00:00:00.5|1 mon -1 day",
    );
    intervals.extend((0..1000).map(|_| random.interval()));
    vec![
        case("date", dates.iter().cloned().chain(["5874897-12-31".to_owned()])),
        case("time", ["00:00:00", "24:00:00", "23:59:59.999999", "12:30:00.1", "12:30:00.000001"]),
        case(
            "timetz",
            words(
                "00:00:00+00 24:00:00-15:59:59 12:30:00.25+05:30 12:30:00-03:30 01:02:03+00:53:28 \
                 23:59:59.999999-12 10:00:00+15:59 10:00:00-00:00:01",
            ),
        ),
        case("timestamp", moments.clone()),
        case("timestamptz", moments),
        case("interval", intervals),
    ]
}

/// JSON that both types can hold.
fn json_values() -> Vec<String> {
    let mut values: Vec<String> = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "1.0",
        "1.50",
        "-1",
        "1e5",
        "1E-5",
        "1e400",
        "-1e400",
        "12345678901234567890",
        "9007199254740993",
        "0.1",
        "-0.0",
        "-0e10",
        "1e308",
        "1.8e308",
        "1e-400",
        "-1e-400",
        "5e-324",
        "123456789.123456789e-5",
        "\"\"",
        "\"a\"",
        "\"\\\"\"",
        "[]",
        "{}",
        "[[]]",
        "[{}]",
        "[1, -0, 1e400, [-0.0, {\"n\": 1e400}], \"-0\"]",
        "{\"a\": 1e400, \"b\": \"1e400\", \"c\\\"-0\": -0}",
        "{\"a\": 1, \"a\": 2, \"b\": {\"c\": 1, \"c\": [3]}}",
        "{\"\": 0, \" \": 1, \"__proto__\": 2, \"constructor\": 3, \"2\": 4, \"1\": 5}",
        "\"\\ud83d\\ude00 \\u00e9 \\u2028 \\/ \\b\\f\\n\\r\\t \\\\ \\\\\\\\\"",
        "[\"\\\\\", -0]",
        "[\"\\\\\\\"\", -0, \"\"]",
        "\"\u{1F600}\u{2028}é\"",
        // Strings that contain JSON, which drizzle-orm parses once more.
        "\"1\"",
        "\"-0\"",
        "\"1e400\"",
        "\"true\"",
        "\"null\"",
        "\" [1, -0] \"",
        "\"{\\\"a\\\":1.0}\"",
        "\"\\\"twice\\\"\"",
        "\"[1,\"",
        "\"tru\"",
        "\"01\"",
        "\"{}x\"",
        "\"\\u005b1]\"",
        "\"NaN\"",
        "\"\\t1\\n\"",
        "\"\\u00a01\"",
        "\"2026-03-01\"",
        "\"\\\"\\\\\\\"\\\"\"",
        "[\"1\"]",
    ]
    .map(str::to_owned)
    .to_vec();
    values.push(format!("[{}, {}.5, -0.{}1]", "9".repeat(309), "9".repeat(309), "0".repeat(400)));
    values.push(format!("{}1{}", "[".repeat(300), "]".repeat(300)));
    values.push(format!("\"{}1{}\"", "[".repeat(300), "]".repeat(300)));
    values
}

fn documents() -> Vec<Case> {
    let both = json_values();
    let json = [
        " \t\n\r[ 1 ,\n 2 ] \n",
        "\"\\u0000\"",
        "{\"\\u0000\": \"a\\u0000b\"}",
        "\"\\ud800\"",
        "\"\\udc00 \\ud800x\"",
        "[\"\\ud83d\", -0]",
        "1e99999",
        "-1e-99999",
        "\n\"1\"\n",
        "\"\\ud800 1\"",
        "{\"a\":1,\"a\":-0}",
    ];
    vec![case("json", both.iter().cloned().chain(json.map(str::to_owned))), case("jsonb", both)]
}

fn others() -> Vec<Case> {
    let mut random = Random(17);
    let mut inet = words(
        "0.0.0.0 127.0.0.1 192.168.0.1/24 10.0.0.0/8 255.255.255.255/32 1.2.3.4/0 :: ::1 ::/0 \
         ::1.2.3.4 ::ffff:1.2.3.4 ::ffff:0:1.2.3.4 2001:db8::1 2001:db8::1/64 1::2:0:0:0:3 \
         1:0:0:2:0:0:0:3 1:0:0:0:2:0:0:3 fe80::1:2:3:4/10 1:2:3:4:5:6:7:8 0:0:0:0:0:1:: ::2 \
         ::1:0 ::0:1:0:0 1:0:2:0:3:0:4:0 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 1:: 0:1:: \
         ::1:2 ::ffff:1 1:2:3:4:5:6:0:0",
    );
    inet.extend((0..500).map(|_| random.ipv6()));
    vec![
        case(
            "uuid",
            [
                "00000000-0000-0000-0000-000000000000",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
                "01234567-89ab-cdef-FEDC-BA9876543210",
            ],
        ),
        case("bytea", ["", "\\x00", "\\xdeadbeef", "\\x00ff5c22", "\\x6e756c6c"]),
        case("inet", inet),
        case(
            "cidr",
            words("10.0.0.0/8 0.0.0.0/0 1.2.3.4 2001:db8::/32 ::/0 ::1 ::ffff:1.2.3.0/120"),
        ),
        case("macaddr", ["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"]),
        case("macaddr8", ["08:00:2b:01:02:03:04:05"]),
        Case { sql: "bit(5)", ..case("bit", ["00000", "10101", "11111"]) },
        case("varbit", ["", "1", "10101010", "101010101"]),
        case(
            "point",
            ["(0,0)", "(-0,1.5)", "(1e300,-1e-300)", "(NaN,Infinity)", "(0.1,-Infinity)"],
        ),
    ]
}

fn ranges() -> Vec<Case> {
    let of = |name, subtype, values: &str| Case {
        ty: ColumnType::Range(Box::new(subtype)),
        ..case(name, lines(values))
    };
    vec![
        case("int4range", ["empty", "[1,5)", "(,)", "[1,)", "(,5)", "[-5,-1]"]),
        case("int8range", ["[9007199254740993,)", "empty"]),
        case("numrange", ["[1.50,2)", "(1.5,2.5]", "[NaN,NaN]", "(,1e20)", "empty"]),
        case("daterange", lines("[2026-01-01,2026-02-01)|[infinity,]|(,0044-03-15 BC)|empty")),
        case("tsrange", lines("[2026-01-01,2026-02-01 12:30:00.5)|[2026-01-01,infinity]|(,)")),
        case("tstzrange", lines("[2026-01-01 00:00+02,2026-02-01 00:00+00)|(0044-03-15 BC,)")),
        of(
            "span",
            ColumnType::Text,
            "[a,b)|[\"\",\"a b\"]|[\"a\"\"\\\\\",z)|(,\"(\")|[NULL,null]|[a\\,b,\"é\"]",
        ),
    ]
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn lines(text: &str) -> Vec<String> {
    text.split('|').map(str::to_owned).collect()
}

/// Numbers that look random and are the same in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn float4(&mut self) -> f32 {
        Some(f32::from_bits((self.next() >> 32) as u32)).filter(|n| n.is_finite()).unwrap_or(1.5)
    }

    fn float8(&mut self) -> f64 {
        Some(f64::from_bits(self.next())).filter(|n| n.is_finite()).unwrap_or(1.5)
    }

    fn numeric(&mut self) -> String {
        let sign = ["", "-"][self.below(2) as usize];
        let mut digits = |most: u64| -> String {
            let count = self.below(most);
            let kind = self.below(3);
            (0..count)
                .map(|_| if kind == 0 { '0' } else { char::from(b'0' + self.below(10) as u8) })
                .collect()
        };
        let (whole, fraction) = (digits(24), digits(16));
        format!("{sign}0{whole}.{fraction}0e{}", self.below(40) as i64 - 20)
    }

    fn moment(&mut self) -> String {
        let seconds = self.below(315_537_897_600) as i64 - 62_135_596_800;
        let microseconds = self.below(1_000_000) as u32;
        let moment = chrono::DateTime::from_timestamp(seconds, microseconds * 1000).unwrap();
        moment.format("%Y-%m-%d %H:%M:%S%.6f").to_string()
    }

    fn interval(&mut self) -> String {
        let bounds = [30, 40, 100_000_000_000];
        let [months, days, microseconds] = bounds.map(|bound| {
            if self.below(3) == 0 { 0 } else { self.below(2 * bound) as i64 - bound as i64 }
        });
        format!("{months} months {days} days {microseconds} microseconds")
    }

    fn ipv6(&mut self) -> String {
        let words: Vec<String> = (0..8)
            .map(|_| if self.below(2) == 0 { 0 } else { self.below(0x1_0000) })
            .map(|word| format!("{word:x}"))
            .collect();
        words.join(":")
    }
}
