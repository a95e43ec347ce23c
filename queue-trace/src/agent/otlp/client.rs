//! One request to an OTLP endpoint over plain HTTP, and what its answer means.

use std::{io::Write, str::FromStr, time::Duration};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::{Request, StatusCode, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message;
use tokio::{net::TcpStream, time::timeout};

/// Where to send to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `HOST:PORT`.
    authority: String,
    /// What stands before `/v1/metrics`.
    path: String,
}

/// The port of OTLP over HTTP.
const PORT: u16 = 4318;
/// An answer takes no longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Answers are short.
const LONGEST_ANSWER: usize = 64 << 10;

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text
            .parse()
            .map_err(|error| format!("{text:?} is not a URL: {error}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err("https is not spoken here: send to a collector on this machine by http, and let it encrypt".to_owned());
            }
            _ => {
                return Err(format!(
                    "{text:?} is not a URL like http://127.0.0.1:{PORT}"
                ));
            }
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| format!("{text:?} names no host"))?;
        Ok(Self {
            authority: format!("{host}:{}", uri.port_u16().unwrap_or(PORT)),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It was taken.
    Accepted,
    /// It should be sent again, after this time if the endpoint said so.
    Later(Option<Duration>),
    /// It will not be taken, or a part of it was not.
    Refused,
}

impl Endpoint {
    /// Sends a request with this body.
    pub async fn send(&self, signal: &str, body: Vec<u8>) -> Sent {
        match timeout(PATIENCE, self.post(signal, body)).await {
            Ok(Ok(sent)) => sent,
            Ok(Err(error)) => {
                log::info!("OTLP {signal} to {}: {error:#}", self.authority);
                Sent::Later(None)
            }
            Err(_) => {
                log::info!(
                    "OTLP {signal} to {}: no answer in {PATIENCE:?}",
                    self.authority
                );
                Sent::Later(None)
            }
        }
    }

    async fn post(&self, signal: &str, body: Vec<u8>) -> anyhow::Result<Sent> {
        let stream = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the answer.
        let connection = tokio::spawn(connection);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&body)?;
        let request = Request::post(format!("{}/v1/{signal}", self.path))
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::CONTENT_ENCODING, "gzip")
            .header(
                header::USER_AGENT,
                concat!("queue-trace/", env!("CARGO_PKG_VERSION")),
            )
            .body(Full::new(Bytes::from(encoder.finish()?)))?;
        let response = sender.send_request(request).await?;
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let answer = Limited::new(response.into_body(), LONGEST_ANSWER)
            .collect()
            .await;
        connection.abort();
        let answer = answer.map_or_else(|_| Bytes::new(), Collected::to_bytes);
        Ok(meaning(status, retry_after, &answer))
    }
}

fn retry_after(headers: &header::HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    // The other form, a date, comes to nothing but the usual pause.
    text.trim().parse().ok().map(Duration::from_secs)
}

/// What an answer means, by the specification of OTLP.
fn meaning(status: StatusCode, retry_after: Option<Duration>, answer: &[u8]) -> Sent {
    match status.as_u16() {
        200..=299 => {
            // The answers to metrics and to logs have the same form.
            let answer = ExportMetricsServiceResponse::decode(answer);
            let partial = answer.ok().and_then(|answer| answer.partial_success);
            match partial {
                Some(partial) if partial.rejected_data_points > 0 => {
                    log::warn!(
                        "the OTLP endpoint rejected {}: {}",
                        partial.rejected_data_points,
                        partial.error_message
                    );
                    Sent::Refused
                }
                _ => Sent::Accepted,
            }
        }
        429 | 502..=504 => Sent::Later(retry_after),
        status => {
            log::warn!("the OTLP endpoint answered {status}");
            Sent::Refused
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let endpoint: Endpoint = "http://127.0.0.1:4318".parse().unwrap();
        assert_eq!(
            (endpoint.authority.as_str(), endpoint.path.as_str()),
            ("127.0.0.1:4318", "")
        );
        let endpoint: Endpoint = "http://collector/opentelemetry/".parse().unwrap();
        assert_eq!(
            (endpoint.authority.as_str(), endpoint.path.as_str()),
            ("collector:4318", "/opentelemetry")
        );
        assert!(
            "https://x"
                .parse::<Endpoint>()
                .unwrap_err()
                .contains("collector on this machine")
        );
        assert!("127.0.0.1:4318".parse::<Endpoint>().is_err());
    }

    #[test]
    fn what_answers_mean() {
        let means = |status| {
            meaning(
                StatusCode::from_u16(status).unwrap(),
                Some(Duration::from_secs(7)),
                b"",
            )
        };
        assert_eq!(means(200), Sent::Accepted);
        assert_eq!(means(429), Sent::Later(Some(Duration::from_secs(7))));
        assert_eq!(means(503), Sent::Later(Some(Duration::from_secs(7))));
        assert_eq!(means(400), Sent::Refused);
        assert_eq!(means(500), Sent::Refused);
    }
}
