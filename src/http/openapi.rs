//! The routes, each with its description. `GET /api/v1/openapi.json` is made of these descriptions,
//! so that a route cannot be served without being in the document.

use std::collections::BTreeMap;

use axum::Router;
use axum::handler::Handler;
use axum::middleware;
use axum::routing::{MethodRouter, get, post};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{AppState, limit_time};

/// Routes, and their document as far as it is made.
pub(super) struct Api {
    router: Router<AppState>,
    paths: BTreeMap<&'static str, BTreeMap<&'static str, Value>>,
    /// Of what the routes answer with.
    answers: SchemaGenerator,
    /// Of what the routes take: a field with a default may be left out.
    requests: SchemaGenerator,
}

/// The description of a route with its method.
pub(super) struct Operation {
    id: &'static str,
    summary: &'static str,
    needs_token: bool,
    headers: &'static [RequestHeader],
    query: Option<SchemaOf>,
    body: Option<SchemaOf>,
    answers: BTreeMap<u16, Answers>,
}

struct Answers {
    description: String,
    /// By media type; text has no schema.
    content: BTreeMap<&'static str, Option<SchemaOf>>,
}

/// A header that a request may have.
pub(super) struct RequestHeader {
    pub(super) name: &'static str,
    pub(super) description: &'static str,
    /// A regular expression.
    pub(super) pattern: &'static str,
}

impl RequestHeader {
    fn parameter(&self) -> Value {
        let Self { name, description, pattern } = self;
        let schema = json!({ "type": "string", "pattern": pattern });
        json!({ "name": name, "in": "header", "description": description, "schema": schema })
    }
}

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// An error, as every route answers with it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(super) struct ErrorBody {
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ErrorDetail {
    /// One of the codes in docs/http.md.
    code: &'static str,
    /// For people.
    message: String,
}

impl ErrorBody {
    pub(super) fn new(code: &'static str, message: String) -> Self {
        Self { error: ErrorDetail::new(code, message) }
    }
}

impl ErrorDetail {
    pub(super) fn new(code: &'static str, message: String) -> Self {
        Self { code, message }
    }
}

impl Operation {
    /// A route with an operation id, which generated clients use as a name, and a summary.
    pub(super) fn new(id: &'static str, summary: &'static str) -> Self {
        let (query, body, answers) = (None, None, BTreeMap::new());
        Self { id, summary, needs_token: false, headers: &[], query, body, answers }
    }

    /// It answers with this type and status.
    pub(super) fn answers<T: JsonSchema>(self, status: u16, description: &str) -> Self {
        self.with(
            status,
            description,
            "application/json",
            Some(SchemaGenerator::subschema_for::<T>),
        )
    }

    /// It answers with text of this media type.
    pub(super) fn answers_text(self, description: &str, kind: &'static str) -> Self {
        self.with(200, description, kind, None)
    }

    /// It may refuse a request with this status; the description names the codes.
    pub(super) fn refuses(self, status: u16, description: &str) -> Self {
        self.answers::<ErrorBody>(status, description)
    }

    /// It takes the fields of this type as query parameters.
    pub(super) fn query<T: JsonSchema>(self) -> Self {
        let query = Some(SchemaGenerator::root_schema_for::<T> as SchemaOf);
        Self { query, ..self }.refuses(400, "`bad_request`: a query parameter is not valid")
    }

    /// It takes this type as its body, which may be left out.
    pub(super) fn body<T: JsonSchema>(self) -> Self {
        let body = Some(SchemaGenerator::subschema_for::<T> as SchemaOf);
        Self { body, ..self }
            .refuses(400, "`bad_request`: the body is not JSON, or a header is not valid")
            .refuses(413, "`too_large`: the body is larger than 64 KiB")
            .refuses(
                415,
                "`unsupported_media_type`: the body has no `Content-Type: application/json`",
            )
            .refuses(422, "the body is JSON but not valid; the code says why")
    }

    /// It needs the token, because it changes something.
    pub(super) fn needs_token(self) -> Self {
        Self { needs_token: true, ..self }
            .refuses(401, "`unauthorized`: the request has no token, or a wrong one")
            .refuses(403, "`no_token_configured`: the worker has no token")
            .refuses(429, "`busy` and others: try again after `Retry-After` seconds")
    }

    /// It takes these headers.
    pub(super) fn headers(self, headers: &'static [RequestHeader]) -> Self {
        Self { headers, ..self }
    }

    fn with(
        mut self,
        status: u16,
        description: &str,
        kind: &'static str,
        schema: Option<SchemaOf>,
    ) -> Self {
        let answers = self.answers.entry(status).or_insert_with(|| Answers {
            description: description.to_owned(),
            content: BTreeMap::new(),
        });
        answers.content.insert(kind, schema);
        self
    }
}

impl Default for Api {
    fn default() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        let inline = |settings: &mut SchemaSettings| settings.inline_subschemas = true;
        Self {
            router: Router::new(),
            paths: BTreeMap::new(),
            answers: settings.clone().for_serialize().into_generator(),
            requests: settings.for_deserialize().with(inline).into_generator(),
        }
    }
}

impl Api {
    /// Adds a route that reads.
    pub(super) fn get<H, T>(self, path: &'static str, handler: H, operation: Operation) -> Self
    where
        H: Handler<T, AppState>,
        T: 'static,
    {
        let operation = operation.refuses(504, "`timeout`: the answer took too long");
        let route = get(handler).layer(middleware::from_fn(limit_time));
        self.add(path, "get", route, operation)
    }

    /// Adds a route that changes something. It limits the time of its parts itself, because a
    /// request may wait for a run.
    pub(super) fn post<H, T>(self, path: &'static str, handler: H, operation: Operation) -> Self
    where
        H: Handler<T, AppState>,
        T: 'static,
    {
        self.add(path, "post", post(handler), operation)
    }

    fn add(
        mut self,
        path: &'static str,
        method: &'static str,
        route: MethodRouter<AppState>,
        operation: Operation,
    ) -> Self {
        let described = self.describe(path, operation);
        self.paths.entry(path).or_default().insert(method, described);
        self.router = self.router.route(path, route);
        self
    }

    fn describe(&mut self, path: &str, operation: Operation) -> Value {
        let Operation { id, summary, needs_token, headers, query, body, mut answers } = operation;
        let mut parameters: Vec<_> = path.split('/').filter_map(path_parameter).collect();
        if let Some(query) = query {
            parameters.extend(query_parameters(&query(&mut self.requests)));
        }
        parameters.extend(headers.iter().map(RequestHeader::parameter));
        if path.starts_with("/api/") {
            let description =
                "the worker starts or stops, or a server is away; the code says which";
            let schema: SchemaOf = SchemaGenerator::subschema_for::<ErrorBody>;
            answers.entry(503).or_insert_with(|| Answers {
                description: description.to_owned(),
                content: BTreeMap::from([("application/json", Some(schema))]),
            });
        }
        let responses: Map<_, _> = answers
            .into_iter()
            .map(|(status, answer)| (status.to_string(), self.response(answer)))
            .collect();
        let mut described = Map::new();
        described.insert("operationId".to_owned(), json!(id));
        described.insert("summary".to_owned(), json!(summary));
        described.insert("parameters".to_owned(), json!(parameters));
        described.insert("responses".to_owned(), json!(responses));
        if let Some(body) = body {
            let schema = body(&mut self.requests);
            let content = json!({ "application/json": { "schema": schema } });
            described
                .insert("requestBody".to_owned(), json!({ "required": false, "content": content }));
        }
        if needs_token {
            described.insert("security".to_owned(), json!([{ "token": [] }]));
        }
        Value::Object(described)
    }

    fn response(&mut self, answer: Answers) -> Value {
        let Answers { description, content } = answer;
        let content: Map<_, _> = content
            .into_iter()
            .map(|(kind, schema)| {
                let text = || json!({ "type": "string" });
                let schema = schema.map_or_else(text, |schema| schema(&mut self.answers).into());
                (kind.to_owned(), json!({ "schema": schema }))
            })
            .collect();
        json!({ "description": description, "content": content })
    }

    /// The routes, and the document as JSON text.
    pub(super) fn finish(mut self) -> (Router<AppState>, String) {
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "preheat",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "The control plane of a preheat worker.",
                "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            },
            "paths": self.paths,
            "components": {
                "schemas": self.answers.take_definitions(true),
                "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            },
        });
        (self.router, format!("{document:#}\n"))
    }
}

fn path_parameter(segment: &str) -> Option<Value> {
    let name = segment.strip_prefix('{')?.strip_suffix('}')?;
    let schema = json!({ "type": "string", "minLength": 1 });
    Some(json!({ "name": name, "in": "path", "required": true, "schema": schema }))
}

fn query_parameters(schema: &Schema) -> Vec<Value> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let parameter = |(name, schema): (&String, &Value)| json!({ "name": name, "in": "query", "required": false, "schema": schema });
    properties.into_iter().flatten().map(parameter).collect()
}
