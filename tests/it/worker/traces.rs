//! Traces of runs, received by a collector.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::support::LONG;
use crate::support::http::post;
use crate::support::program::preheat;
use crate::support::shop::{Shop, TOKEN, items};

/// A collector that takes traces by OTLP over HTTP.
struct Collector {
    url: String,
    received: mpsc::Receiver<ResourceSpans>,
    _serving: JoinSet<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, received) = mpsc::channel(1_000);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                for spans in receive(stream).await.resource_spans {
                    sender.send(spans).await.unwrap();
                }
            }
        });
        Self { url, received, _serving: serving }
    }

    /// The next spans that belong together, until the trace has its run.
    async fn run(&mut self) -> (ResourceSpans, Vec<Span>) {
        let received = async {
            loop {
                let resource = self.received.recv().await.unwrap();
                let spans: Vec<_> =
                    resource.scope_spans.iter().flat_map(|scope| scope.spans.clone()).collect();
                if spans.iter().any(|span| span.name.starts_with("run ")) {
                    return (resource, spans);
                }
            }
        };
        tokio::time::timeout(LONG, received).await.expect("a trace arrives")
    }
}

async fn receive(mut stream: TcpStream) -> ExportTraceServiceRequest {
    let (mut received, mut head) = (Vec::new(), None);
    loop {
        if head.is_none() {
            head = received.windows(4).position(|part| part == b"\r\n\r\n").map(|end| end + 4);
        }
        if let Some(head) = head {
            let text = std::str::from_utf8(&received[..head]).unwrap().to_lowercase();
            assert!(text.starts_with("post /v1/traces http/1.1\r\n"), "{text}");
            assert!(text.contains("\r\nhost: 127.0.0.1:"), "{text}");
            let (_, length) = text.split_once("content-length: ").unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            if received.len() >= head + length {
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
                return ExportTraceServiceRequest::decode(&received[head..head + length]).unwrap();
            }
        }
        assert!(stream.read_buf(&mut received).await.unwrap() > 0, "the request is cut off");
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kinds of values are the protocol's")]
fn text(span: &Span, name: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

fn named<'s>(spans: &'s [Span], name: &str) -> Vec<&'s Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[tokio::test]
async fn a_run_is_a_trace_with_its_batches() {
    let shop = Shop::open(6).await;
    let mut collector = Collector::start().await;
    let output = preheat(["warm"])
        .database(shop.url())
        .cache(shop.redis.url())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        .job("items", &items("batch = 3"))
        .run()
        .await;
    output.expect_code(0);
    let (resource, spans) = collector.run().await;
    let attributes = resource.resource.unwrap().attributes;
    let about = |name: &str| attributes.iter().any(|attribute| attribute.key == name);
    assert!(about("service.version") && about("deployment.environment"), "{attributes:?}");
    let [run] = named(&spans, "run items")[..] else { panic!("{spans:?}") };
    assert_eq!(text(run, "preheat.outcome").as_deref(), Some("ok"));
    assert_eq!(text(run, "preheat.tenants").as_deref(), Some("6"));
    let id = text(run, "preheat.run.id").unwrap().replace('-', "");
    let trace = u128::from_be_bytes(run.trace_id.clone().try_into().unwrap());
    assert_eq!(format!("{trace:032x}"), id, "a trace has its run's id");
    let batches = named(&spans, "batch");
    assert_eq!(batches.len(), 2, "{spans:?}");
    for batch in batches {
        assert_eq!(batch.parent_span_id, run.span_id);
        assert!(batch.start_time_unix_nano >= run.start_time_unix_nano);
        assert!(batch.end_time_unix_nano <= run.end_time_unix_nano);
        assert_eq!(text(batch, "preheat.tenants").as_deref(), Some("3"));
    }
    assert_eq!((named(&spans, "read").len(), named(&spans, "write").len()), (2, 2));
}

#[tokio::test]
async fn a_requests_trace_goes_on_in_its_run_and_a_failure_is_told() {
    let shop = Shop::open(3).await;
    let mut collector = Collector::start().await;
    let broken = "select tenant_id, 1 / (id - id) as one from items where tenant_id = any($1)";
    let worker = shop
        .serve()
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/v1/traces", collector.url))
        .env("OTEL_SERVICE_NAME", "shop-preheat")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .job("broken", &crate::support::shop::items_by("on_start = false", broken))
        .start();
    worker.answers("/readyz", 200).await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let token = format!("Bearer {TOKEN}");
    let headers = [("authorization", token.as_str()), ("traceparent", parent)];
    let body = json!({ "wait": true }).to_string();
    let answer = post(worker.address(), "/api/v1/jobs/broken/runs", &headers, &body).await.unwrap();
    assert_eq!(answer.json()["outcome"], "partial", "the first tenant has no items");
    let (_, spans) = collector.run().await;
    let [run] = named(&spans, "run broken")[..] else { panic!("{spans:?}") };
    assert_eq!(run.trace_id[..2], [0x4b, 0xf9]);
    assert_eq!(run.parent_span_id[..2], [0x00, 0xf0]);
    assert_eq!(text(run, "preheat.outcome").as_deref(), Some("partial"));
    let failed = named(&spans, "batch").into_iter().filter_map(|batch| text(batch, "error.type"));
    let failed: Vec<_> = failed.collect();
    assert!(!failed.is_empty() && failed.iter().all(|kind| kind == "query"), "{spans:?}");
}

#[tokio::test]
async fn a_collector_that_is_away_costs_one_line() {
    let shop = Shop::open(3).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut worker = shop
        .serve()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        .env("OTEL_BSP_SCHEDULE_DELAY", "50")
        .job("items", &items(""))
        .start();
    worker.answers("/readyz", 200).await;
    for _ in 0..3 {
        assert_eq!(worker.warm("items").await["outcome"], "ok");
        // It takes a request, and ends the connection without an answer.
        drop(tokio::time::timeout(LONG, listener.accept()).await.unwrap().unwrap());
        worker.says("could not send traces to the collector").await;
    }
    worker.signal(Signal::TERM);
    let said = worker.ended().await.stderr;
    assert_eq!(said.matches("to the collector").count(), 1, "{said}");
}
