//! Runs the service: `DATABASE_URL`, `REDIS_URL`, `LISTEN`, `CACHE=on|off`.

use std::error::Error;

use clinic::{Service, Settings};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(filter()).with_writer(std::io::stderr).init();
    let settings = Settings::from_environment()?;
    let service = Service::new(&settings)?;
    let listener = TcpListener::bind(&settings.listen).await?;
    tracing::info!(address = %listener.local_addr()?, "the clinic is open");
    axum::serve(listener, service.router()).with_graceful_shutdown(stopped()).await?;
    service.close().await;
    Ok(())
}

fn filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_unset| "info".into())
}

async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminated) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = terminated.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
