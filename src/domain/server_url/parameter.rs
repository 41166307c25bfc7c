//! The parameters of a database's URL: preheat follows each of them, or refuses it by its name.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use super::UrlProblem;
use crate::domain::spelling::{listed, nearest};

/// Which of several servers preheat may use: libpq's `target_session_attrs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerRole {
    /// The first server that accepts the connection.
    #[default]
    Any,
    /// A server whose sessions may write.
    ReadWrite,
    /// A server whose sessions may not write.
    ReadOnly,
    /// A server that is not a standby.
    Primary,
    /// A standby.
    Standby,
    /// A standby; any server if there is none.
    PreferStandby,
}

impl ServerRole {
    /// The word for it in libpq.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }
}

/// Whether a connection uses TLS, and what the client verifies: libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it.
    Prefer,
    /// Always TLS; the client does not verify the server's certificate.
    Require,
    /// Always TLS, with a certificate that a trusted authority signed.
    VerifyCa,
    /// Always TLS, with a trusted certificate for the host's name.
    VerifyFull,
}

/// The contents of a URL, before its parts are checked against each other.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) names: Vec<String>,
    pub(super) ports: Vec<Option<u16>>,
    pub(super) addresses: Vec<String>,
    pub(super) wanted: ServerRole,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: Option<String>,
    pub(super) ssl_mode: Option<TlsMode>,
    /// The value of `ssl`, the name in other drivers; `ssl_mode` has priority.
    pub(super) ssl: Option<TlsMode>,
    pub(super) root_cert: Option<String>,
    pub(super) client_cert: Option<String>,
    pub(super) client_key: Option<String>,
    pub(super) binds_channel: bool,
    pub(super) application_name: Option<String>,
    pub(super) fallback_application_name: Option<String>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) connection_limit: Option<NonZeroU32>,
    pub(super) search_path: Vec<String>,
    pub(super) settings: Vec<(String, String)>,
    pub(super) endpoint: Option<String>,
}

/// The documentation of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterNote {
    /// The parameter's name, and other names for the same parameter.
    pub names: Vec<&'static str>,
    /// Whether preheat accepts the parameter.
    pub is_taken: bool,
    /// What the parameter does, or what to write instead.
    pub note: String,
}

/// The documentation of all parameters that preheat knows.
pub fn parameters() -> Vec<ParameterNote> {
    let note = |parameter: &Parameter| {
        let (is_taken, note) = match parameter.rule {
            Rule::Honoured(_, note) | Rule::Only([], note) => (true, note.to_owned()),
            Rule::Only(values, note) => {
                let allowed = listed(values.iter().copied(), "or");
                (true, format!("{allowed} only: {}", with_small_letter(note)))
            }
            Rule::Refused(note) => (false, note.to_owned()),
        };
        ParameterNote { names: parameter.names.to_vec(), is_taken, note }
    };
    PARAMETERS.iter().map(note).collect()
}

struct Parameter {
    names: &'static [&'static str],
    rule: Rule,
}

enum Rule {
    /// preheat follows it: the function stores the value, or says which values are valid.
    Honoured(fn(&mut Draft, &str) -> Result<(), String>, &'static str),
    /// preheat accepts only these values, because they say what it always does. An empty list allows
    /// any value.
    Only(&'static [&'static str], &'static str),
    /// preheat refuses it; the text says what to write instead.
    Refused(&'static str),
}

const fn honoured(
    names: &'static [&'static str],
    apply: fn(&mut Draft, &str) -> Result<(), String>,
    note: &'static str,
) -> Parameter {
    Parameter { names, rule: Rule::Honoured(apply, note) }
}

const fn only(
    names: &'static [&'static str],
    values: &'static [&'static str],
    note: &'static str,
) -> Parameter {
    Parameter { names, rule: Rule::Only(values, note) }
}

const fn refused(names: &'static [&'static str], instead: &'static str) -> Parameter {
    Parameter { names, rule: Rule::Refused(instead) }
}

const KEEPALIVE: &str = "leave it out: each query and each connection attempt has a time limit of its own, after which \
     the connection is given up; the driver does not set options of the socket";
const OWN_LIMIT: &str = "leave it out, and set `[database] statement_timeout` or a job's `timeout`";

const PARAMETERS: &[Parameter] = &[
    honoured(
        &["host"],
        set_hosts,
        "One or several hosts, in the order to try them; a folder is a Unix socket's",
    ),
    honoured(
        &["hostaddr"],
        set_addresses,
        "The IP address to connect to. Not with `sslmode=verify-full` beside a host",
    ),
    honoured(&["port"], set_ports, "One port for all hosts, or one for each"),
    honoured(
        &["dbname"],
        |draft, value| {
            draft.database = some(value);
            Ok(())
        },
        "The database",
    ),
    honoured(
        &["user"],
        |draft, value| {
            draft.user = some(value);
            Ok(())
        },
        "The role",
    ),
    honoured(
        &["password"],
        |draft, value| {
            draft.password = some(value);
            Ok(())
        },
        "Its password. Without one, `PGPASSWORD` and `~/.pgpass` are asked",
    ),
    honoured(
        &["target_session_attrs", "targetServerType"],
        set_wanted,
        "Which of several hosts will do: `any`, `read-write`, `read-only`, `primary`, `standby` or \
         `prefer-standby`; JDBC's words are taken too",
    ),
    only(
        &["load_balance_hosts", "loadBalanceHosts"],
        &["disable", "false"],
        "Hosts are tried in the order in which they are written",
    ),
    honoured(
        &["connect_timeout", "connectTimeout"],
        set_connect_timeout,
        "The longest wait for one host, in seconds; without it 5",
    ),
    honoured(
        &["application_name", "ApplicationName"],
        |draft, value| {
            draft.application_name = some(value);
            Ok(())
        },
        "The name in `pg_stat_activity`; without it `preheat`",
    ),
    honoured(
        &["fallback_application_name"],
        |draft, value| {
            draft.fallback_application_name = some(value);
            Ok(())
        },
        "The same where `application_name` is not written",
    ),
    honoured(
        &["sslmode", "ssl-mode"],
        |draft, value| tls_mode(value).map(|mode| draft.ssl_mode = Some(mode)),
        "As in libpq, with two differences: `allow` is `prefer`, and node-postgres' `no-verify` is `require`. \
         `require` beside `sslrootcert` is `verify-ca`, as in libpq",
    ),
    honoured(
        &["ssl"],
        |draft, value| ssl(value).map(|mode| draft.ssl = Some(mode)),
        "JDBC's and node-postgres' `true` is `sslmode=verify-full`, `false` is `disable`; asyncpg's are those of `sslmode`, which goes before it",
    ),
    honoured(
        &["sslaccept"],
        |draft, value| ssl_accept(value).map(|mode| draft.ssl = Some(mode)),
        "Prisma's `strict` is `sslmode=verify-full`, `accept_invalid_certs` is `require`",
    ),
    honoured(
        &["sslrootcert", "ssl-root-cert", "ssl-ca"],
        |draft, value| {
            draft.root_cert = some(value);
            Ok(())
        },
        "A file with authorities to trust beside the public ones; or `system`, which are those of this machine, with \
         `sslmode=verify-full`",
    ),
    honoured(
        &["sslcert", "ssl-cert"],
        |draft, value| {
            draft.client_cert = some(value);
            Ok(())
        },
        "Our own certificate, with `sslkey`",
    ),
    honoured(
        &["sslkey", "ssl-key"],
        |draft, value| {
            draft.client_key = some(value);
            Ok(())
        },
        "Its key, without a passphrase",
    ),
    honoured(
        &["channel_binding"],
        set_channel_binding,
        "`require` raises `sslmode` to `verify-full`, which proves the same: the driver has no channel binding. \
         `prefer` and `disable` change nothing",
    ),
    only(&["sslsni"], &["1"], "The host's name is always sent"),
    only(&["sslnegotiation"], &["postgres"], "The server is asked for TLS as Postgres always did"),
    only(&["sslcompression"], &["0"], "Nothing is compressed"),
    only(
        &["ssl_min_protocol_version"],
        &["TLSv1", "TLSv1.1", "TLSv1.2"],
        "At least TLS 1.2 is used",
    ),
    only(&["gssencmode"], &["disable", "prefer"], "There is no GSS encryption"),
    only(&["uselibpqcompat"], &["true"], "`sslmode` means what it means in libpq"),
    honoured(
        &["schema"],
        set_schema,
        "Prisma's: the schema in which names without one are looked up",
    ),
    honoured(
        &["search_path", "currentSchema"],
        set_search_path,
        "The same for several schemas, with commas",
    ),
    honoured(
        &["options"],
        set_options,
        "`-c name=value`: set in each transaction, so that it holds behind a pooler too. Neon's `endpoint=` is taken where the \
         host begins with it",
    ),
    only(
        &["client_encoding", "encoding"],
        &["UTF8", "utf8", "UTF-8", "utf-8", "auto", "unicode"],
        "Text is always UTF-8",
    ),
    only(
        &["pgbouncer"],
        &["true", "false"],
        "Of Prisma: works behind every pooler, and without one, whatever it says",
    ),
    honoured(
        &["connection_limit"],
        set_connection_limit,
        "Prisma's: bounds `[database] max_connections` where it is lower",
    ),
    only(
        &[
            "statement_cache_size",
            "prepared_statement_cache_size",
            "statement-cache-capacity",
            "statement_cache_capacity",
            "prepareThreshold",
        ],
        &["0"],
        "No prepared statement outlives its transaction",
    ),
    only(&["prepared_statements"], &["false"], "The same"),
    only(
        &["supa", "workaround"],
        &[],
        "Supabase's integrations add it; preheat sends it to no server",
    ),
    refused(
        &["pool_timeout"],
        "leave it out: a batch waits for one of preheat's connections as long as its job's `timeout`",
    ),
    refused(
        &["pool", "pool_size", "max_connections", "max", "maxpoolsize"],
        "leave it out, and set `[database] max_connections`",
    ),
    refused(
        &[
            "statement_timeout",
            "lock_timeout",
            "query_timeout",
            "socket_timeout",
            "socketTimeout",
            "command_timeout",
        ],
        OWN_LIMIT,
    ),
    refused(&["loginTimeout", "connectionTimeoutMillis"], "write `connect_timeout`, in seconds"),
    refused(
        &[
            "keepalives",
            "keepalives_idle",
            "keepalives_interval",
            "keepalives_count",
            "tcp_user_timeout",
            "tcpKeepAlive",
        ],
        KEEPALIVE,
    ),
    refused(
        &["idle_in_transaction_session_timeout", "work_mem", "role"],
        "write it as `options=-c name=value`, with `%20` and `%3D`",
    ),
    refused(&["timezone", "TimeZone"], "leave it out, and set `[database] time_zone`"),
    refused(
        &["default_transaction_read_only", "readOnly"],
        "leave it out: see `[database] read_only`",
    ),
    refused(&["sslpassword"], "name a key without a passphrase as `sslkey`"),
    refused(
        &["sslidentity"],
        "write the certificate and its key as `sslcert` and `sslkey`, in PEM",
    ),
    refused(
        &["sslfactory", "sslhostnameverifier"],
        "leave it out, and write `sslmode`; `require` does not look at the certificate",
    ),
    refused(
        &["sslcrl", "sslcrldir", "sslcertmode", "ssl_max_protocol_version", "requiressl"],
        "leave it out: the TLS library has no such choice",
    ),
    refused(&["passfile"], "leave it out, and name the file in the variable `PGPASSFILE`"),
    refused(&["service", "servicefile"], "write what the service's file says as parameters"),
    refused(
        &["krbsrvname", "gsslib", "gssdelegation", "require_auth", "requirepeer"],
        "leave it out: the role logs in by password or by certificate",
    ),
    refused(&["replication"], "leave it out: preheat adds it where it reads the write-ahead log"),
    refused(&["sslinline", "ssl_ca", "sslca"], "name a PEM file as `sslrootcert`"),
];

/// Applies the parameters to a draft with the URL's other parts, which they override.
pub(super) fn apply(
    mut draft: Draft,
    pairs: Vec<(String, String)>,
    problems: &mut Vec<UrlProblem>,
) -> Draft {
    let mut seen: Vec<&str> = Vec::new();
    let (mut hosts, rest): (Vec<_>, Vec<_>) =
        pairs.into_iter().partition(|(name, _)| name == "host");
    if !hosts.is_empty() {
        // SQLAlchemy repeats the parameter for each of several hosts.
        let values: Vec<_> = hosts.drain(..).map(|(_, value)| value).collect();
        hosts.push(("host".to_owned(), values.join(",")));
    }
    for (name, value) in hosts.into_iter().chain(rest) {
        if let Some(setting) = name.strip_prefix("options[").and_then(|n| n.strip_suffix(']')) {
            let set = set_option(&mut draft, setting, &value);
            problems.extend(set.err().map(|hint| invalid("options", hint)));
            continue;
        }
        let found = PARAMETERS.iter().find(|known| known.names.contains(&name.as_str()));
        let Some(Parameter { names, rule }) = found else {
            problems.push(UrlProblem::unknown(&name, known()));
            continue;
        };
        let first = names.first().copied().unwrap_or_default();
        if seen.contains(&first) && first != "options" {
            let message = format!("parameter `{name}` is there twice");
            problems.push(UrlProblem::part(message, "write it once"));
            continue;
        }
        seen.push(first);
        match rule {
            Rule::Honoured(apply, _) => {
                problems.extend(apply(&mut draft, &value).err().map(|hint| invalid(&name, hint)));
            }
            Rule::Only(values, note) => {
                if !values.is_empty() && !values.contains(&value.as_str()) {
                    let allowed = listed(values.iter().copied(), "or");
                    let note = with_small_letter(note);
                    let hint = format!("it can be {allowed} only: {note}");
                    problems.push(invalid(&name, hint));
                }
            }
            Rule::Refused(instead) => {
                problems.push(UrlProblem::unsupported(&name, instead));
            }
        }
    }
    draft
}

fn invalid(name: &str, hint: String) -> UrlProblem {
    UrlProblem::part(format!("parameter `{name}` cannot be honoured"), hint)
}

/// The names of all parameters that preheat accepts.
fn known() -> impl Iterator<Item = &'static str> {
    let known = PARAMETERS.iter().filter(|known| !matches!(known.rule, Rule::Refused(_)));
    known.filter_map(|known| known.names.first().copied())
}

fn with_small_letter(sentence: &str) -> String {
    let mut letters = sentence.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

fn some(value: &str) -> Option<String> {
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

fn set_hosts(draft: &mut Draft, value: &str) -> Result<(), String> {
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in value.split(',') {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        // An IPv6 address or a folder may contain colons itself.
        let with_port = host.rsplit_once(':').filter(|(name, _)| {
            !host.starts_with('/') && (!name.contains(':') || name.ends_with(']'))
        });
        let (name, port) = match with_port {
            Some((name, port)) => {
                let port = port.parse().map_err(|_no_number| "a port is a number".to_owned())?;
                (name.trim_matches(['[', ']']), Some(port))
            }
            None => (bare, None),
        };
        if name.starts_with('@') {
            return Err("a socket without a file is not supported: name its folder".to_owned());
        }
        if name.contains(char::is_whitespace) && !name.starts_with('/') {
            return Err("a host has no blanks".to_owned());
        }
        names.push(name.to_owned());
        ports.push(port);
    }
    if ports.iter().any(Option::is_some) {
        draft.ports = ports;
    }
    draft.names = names;
    Ok(())
}

fn set_addresses(draft: &mut Draft, value: &str) -> Result<(), String> {
    let addresses = value.split(',').map(|text| address(text.trim())).collect::<Option<Vec<_>>>();
    draft.addresses = addresses.ok_or("it is an IP address, or several with commas")?;
    Ok(())
}

/// One address of a `hostaddr`, if it is valid.
fn address(text: &str) -> Option<String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|address| address.to_string())
}

fn set_ports(draft: &mut Draft, value: &str) -> Result<(), String> {
    let port = |text: &str| match text.trim() {
        "" => Some(None),
        text => text.parse().ok().filter(|&port| port > 0).map(Some),
    };
    let ports = value.split(',').map(port).collect::<Option<Vec<_>>>();
    draft.ports = ports.ok_or("a port is a number from 1 to 65535")?;
    Ok(())
}

fn set_wanted(draft: &mut Draft, value: &str) -> Result<(), String> {
    draft.wanted = match value {
        "any" => ServerRole::Any,
        "read-write" => ServerRole::ReadWrite,
        "read-only" => ServerRole::ReadOnly,
        "primary" | "master" => ServerRole::Primary,
        "standby" | "secondary" | "slave" => ServerRole::Standby,
        "prefer-standby" | "preferSecondary" | "preferSlave" => ServerRole::PreferStandby,
        _ => {
            let words = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"];
            return Err(format!("it is {}", listed(words, "or")));
        }
    };
    Ok(())
}

fn set_connect_timeout(draft: &mut Draft, value: &str) -> Result<(), String> {
    const LONGEST: u64 = 300;
    let seconds = value.parse().ok().filter(|seconds| (1..=LONGEST).contains(seconds));
    let seconds = seconds.ok_or_else(|| {
        format!("it is a number of seconds from 1 to {LONGEST}: no wait is endless")
    })?;
    draft.connect_timeout = Some(Duration::from_secs(seconds));
    Ok(())
}

fn set_connection_limit(draft: &mut Draft, value: &str) -> Result<(), String> {
    let limit = value.parse().map_err(|_no_number| "it is a number from 1".to_owned())?;
    draft.connection_limit = Some(limit);
    Ok(())
}

fn tls_mode(value: &str) -> Result<TlsMode, String> {
    const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
    match value {
        "disable" => Ok(TlsMode::Disable),
        "allow" | "prefer" => Ok(TlsMode::Prefer),
        "require" | "no-verify" => Ok(TlsMode::Require),
        "verify-ca" => Ok(TlsMode::VerifyCa),
        "verify-full" => Ok(TlsMode::VerifyFull),
        _ => Err(match nearest(value, MODES) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("it is {}", listed(MODES, "or")),
        }),
    }
}

fn ssl(value: &str) -> Result<TlsMode, String> {
    match value {
        "true" | "1" | "" => Ok(TlsMode::VerifyFull),
        "false" | "0" => Ok(TlsMode::Disable),
        mode => tls_mode(mode),
    }
}

fn ssl_accept(value: &str) -> Result<TlsMode, String> {
    match value {
        "strict" => Ok(TlsMode::VerifyFull),
        "accept_invalid_certs" => Ok(TlsMode::Require),
        _ => Err("it is `strict` or `accept_invalid_certs`".to_owned()),
    }
}

fn set_channel_binding(draft: &mut Draft, value: &str) -> Result<(), String> {
    draft.binds_channel = match value {
        "require" => true,
        "prefer" | "disable" => false,
        _ => return Err("it is `disable`, `prefer` or `require`".to_owned()),
    };
    Ok(())
}

fn set_schema(draft: &mut Draft, value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err("it is the name of a schema".to_owned());
    }
    draft.search_path = vec![value.to_owned()];
    Ok(())
}

/// Reads a list of names like Postgres: a name without quotes becomes lower case.
fn set_search_path(draft: &mut Draft, value: &str) -> Result<(), String> {
    let wrong = || "it is names of schemas with commas, as in `app,public`".to_owned();
    let mut names = Vec::new();
    let mut rest = value.trim();
    loop {
        let name;
        (name, rest) = if let Some(quoted) = rest.strip_prefix('"') {
            let end = end_of_quoted(quoted).ok_or_else(wrong)?;
            let (name, rest) = quoted.split_at_checked(end).ok_or_else(wrong)?;
            (name.replace("\"\"", "\""), rest.strip_prefix('"').unwrap_or(rest))
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let (name, rest) = rest.split_at_checked(end).ok_or_else(wrong)?;
            (name.trim().to_lowercase(), rest)
        };
        if name.is_empty() || name.contains(char::is_whitespace) && !value.contains('"') {
            return Err(wrong());
        }
        names.push(name);
        rest = rest.trim_start();
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None if rest.is_empty() => break,
            None => return Err(wrong()),
        }
    }
    draft.search_path = names;
    Ok(())
}

/// The end of a quoted name, whose first quote was already read. Two quotes are one quote of the name
/// itself.
fn end_of_quoted(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((index, byte)) = bytes.next() {
        if byte != b'"' {
            continue;
        }
        if bytes.next_if(|(_, next)| *next == b'"').is_none() {
            return Some(index);
        }
    }
    None
}

/// Reads options like the server program `postgres`: `-c name=value` or `--name=value`, with a `\`
/// before a blank that belongs to a value.
fn set_options(draft: &mut Draft, value: &str) -> Result<(), String> {
    let mut words = words(value).into_iter();
    while let Some(word) = words.next() {
        if let Some(endpoint) = word.strip_prefix("endpoint=").or(word.strip_prefix("project=")) {
            draft.endpoint = Some(endpoint.to_owned());
            continue;
        }
        if word.starts_with("reference=") {
            return Err("write the user with the project, as in `postgres.REFERENCE`".to_owned());
        }
        let setting = match (word.as_str(), word.strip_prefix("-c"), word.strip_prefix("--")) {
            ("-c", _, _) => words.next(),
            (_, Some(setting), _) => Some(setting.to_owned()),
            (_, _, Some(setting)) => setting
                .split_once('=')
                .map(|(name, value)| format!("{}={value}", name.replace('-', "_"))),
            (_, None, None) => None,
        };
        let setting = setting.as_deref().and_then(|setting| setting.split_once('='));
        let (name, value) = setting.ok_or("it is `-c name=value`, as often as needed")?;
        set_option(draft, name, value)?;
    }
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    // Web clients write a blank as `+`.
    let text = text.replace("-c+", "-c ").replace("+-c", " -c").replace("+--", " --");
    let mut words = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let next = match letter {
            '\\' => letters.next(),
            letter if letter.is_whitespace() => {
                words.push(String::new());
                None
            }
            letter => Some(letter),
        };
        if let Some(word) = words.last_mut() {
            word.extend(next);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Stores one setting of a transaction; refuses those that preheat sets itself.
fn set_option(draft: &mut Draft, name: &str, value: &str) -> Result<(), String> {
    let name = name.trim().to_ascii_lowercase();
    let mut bytes = name.bytes();
    let begins = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !begins || !bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte)) {
        return Err("a setting's name has letters, digits, `_` and `.`".to_owned());
    }
    match name.as_str() {
        "search_path" => return set_search_path(draft, value),
        "application_name" => draft.application_name = some(value),
        "statement_timeout" => {
            return Err("leave `statement_timeout` out of it: see `[database] statement_timeout`"
                .to_owned());
        }
        "default_transaction_read_only" | "transaction_read_only" => {
            return Err(format!("leave `{name}` out of it: see `[database] read_only`"));
        }
        "timezone" => {
            return Err("leave `timezone` out of it: see `[database] time_zone`".to_owned());
        }
        "row_security" => {
            return Err("leave `row_security` out of it: see `[database] row_security`".to_owned());
        }
        "jit"
        | "plan_cache_mode"
        | "lock_timeout"
        | "client_encoding"
        | "standard_conforming_strings" => {
            return Err(format!("leave `{name}` out of it: preheat sets it itself"));
        }
        _ => draft.settings.push((name, value.to_owned())),
    }
    Ok(())
}
