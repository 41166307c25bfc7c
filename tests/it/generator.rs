//! The generator of `scripts/bench endpoints`, which the benchmark cannot test itself.

#[expect(dead_code, reason = "the benchmark uses more of it")]
#[path = "../../benches/endpoints/load.rs"]
mod load;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use load::{Arrival, Random, Zipf, arrivals, milliseconds};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SECOND: Duration = Duration::from_secs(1);

/// A server that answers at once, but not at all from the first second after its first request to the second one.
async fn stalling_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut first = None;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let start = *first.get_or_insert_with(Instant::now);
            tokio::spawn(answer(stream, start));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, start: Instant) {
    let mut request = [0; 1024];
    while stream.read(&mut request).await.is_ok_and(|length| length > 0) {
        if (SECOND..2 * SECOND).contains(&start.elapsed()) {
            tokio::time::sleep((2 * SECOND).saturating_sub(start.elapsed())).await;
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    }
}

fn request(at: Duration) -> Arrival {
    Arrival {
        at,
        endpoint: 0,
        method: "GET",
        path: "/".to_owned(),
        tenant: "one".into(),
        body: String::new(),
        expects: 204,
    }
}

/// Without the fixed moments, the stall would be one slow request among thousands of fast ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_for_a_second_is_seen_by_all_requests_of_that_second() {
    let address = stalling_server().await;
    let moments = arrivals(&mut Random::new(1), 1000.0, 3 * SECOND);
    let sent = moments.len();
    let outcome = load::run(vec![address], moments.into_iter().map(request).collect()).await;
    assert_eq!((outcome.samples.len(), outcome.failed()), (sent, 0), "{:?}", outcome.failures);
    let within = |from: Duration, to: Duration| {
        outcome.latencies(move |sample| (from..to).contains(&sample.at))
    };
    let stalled = within(SECOND, 2 * SECOND);
    assert!((800..1200).contains(&stalled.len()), "{}", stalled.len());
    // Whoever comes first waits for the whole second, whoever comes in its middle for half of it.
    assert!(milliseconds(&stalled, 99.0) > 900.0, "{}", milliseconds(&stalled, 99.0));
    assert!(milliseconds(&stalled, 50.0) > 400.0, "{}", milliseconds(&stalled, 50.0));
    let before = within(Duration::ZERO, SECOND / 2);
    assert!(milliseconds(&before, 50.0) < 200.0, "{}", milliseconds(&before, 50.0));
}

#[tokio::test]
async fn an_answer_with_another_status_is_a_failure_and_so_is_none() {
    let address = stalling_server().await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let other = Arrival { expects: 200, ..request(Duration::ZERO) };
    let outcome = load::run(vec![address, gone], vec![other, request(Duration::ZERO)]).await;
    assert_eq!(outcome.failed(), 2);
    assert!(outcome.failures[0].contains("status 204 instead of 200"), "{:?}", outcome.failures);
}

#[test]
fn a_seed_determines_the_moments() {
    let of = |seed| arrivals(&mut Random::new(seed), 500.0, 10 * SECOND);
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
    assert!(of(7).is_sorted());
    // As many as the rate says, within four standard deviations (√5000 ≈ 71), and as irregular as they should be.
    assert!((4717..5283).contains(&of(7).len()), "{}", of(7).len());
    let seconds: Vec<f64> = of(7).iter().map(Duration::as_secs_f64).collect();
    let long = seconds.windows(2).map(|two| f64::from(u8::from(two[1] - two[0] > 1.0 / 500.0)));
    let share = long.clone().sum::<f64>() / f64::from(u32::try_from(long.len()).unwrap());
    assert!(
        (share - (-1.0_f64).exp()).abs() < 0.03,
        "{share} of the gaps are longer than the mean"
    );
}

#[test]
fn the_second_place_is_drawn_half_as_often_as_the_first_and_the_tenth_a_tenth() {
    let (zipf, mut random) = (Zipf::new(100), Random::new(3));
    let mut drawn = [0_u32; 100];
    for _ in 0..200_000 {
        drawn[zipf.draw(&mut random)] += 1;
    }
    let first = f64::from(drawn[0]);
    for place in [2_u32, 3, 10, 50] {
        let share = f64::from(drawn[place as usize - 1]) / first;
        let expected = 1.0 / f64::from(place);
        assert!((share / expected - 1.0).abs() < 0.1, "place {place}: {share}");
    }
    assert!(drawn.iter().all(|times| *times > 0));
}
