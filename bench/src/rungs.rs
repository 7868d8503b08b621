//! The rungs of the ladder below Tollgate: servers that do a little more each, over the same connections.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode, body::Incoming, header, http::HeaderValue, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use poem::{
    Addr, Endpoint, EndpointExt as _, Route,
    endpoint::BoxEndpoint,
    handler,
    http::uri::Scheme,
    post,
    web::{Json, LocalAddr, RemoteAddr},
};
use poem_openapi::{Object, OpenApi, OpenApiService, payload};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};

use crate::payload::{Asked, HOOK};

/// A server that does less than Tollgate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rung {
    /// hyper: gives back the body that it gets.
    Echo,
    /// hyper and serde: reads a hook's request, writes a hook's answer.
    Serde,
    /// The same in a handler of poem.
    Poem,
    /// The same in a handler of poem-openapi.
    Openapi,
}

impl Rung {
    /// All of them, from below.
    pub const ALL: [Self; 4] = [Self::Echo, Self::Serde, Self::Poem, Self::Openapi];

    /// Its name, as an argument.
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Serde => "serde",
            Self::Poem => "poem",
            Self::Openapi => "openapi",
        }
    }
}

/// Serves connections for ever.
pub async fn accept(rung: Rung, listener: TcpListener) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let poem: Option<Arc<BoxEndpoint<'static, poem::Response>>> = match rung {
        Rung::Echo | Rung::Serde => None,
        Rung::Poem => Some(Arc::new(Route::new().at(HOOK, post(customize)).map_to_response().boxed())),
        Rung::Openapi => {
            Some(Arc::new(Route::new().nest("/", OpenApiService::new(Api, "bench", "1")).map_to_response().boxed()))
        }
    };
    loop {
        let (stream, remote) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let poem = poem.clone();
        tokio::spawn(async move {
            match (rung, poem) {
                (Rung::Echo, _) => bare(stream, echo).await,
                (_, None) => bare(stream, read_and_write).await,
                (_, Some(poem)) => behind_poem(stream, address, remote, poem).await,
            }
        });
    }
}

async fn bare(stream: TcpStream, respond: fn(&Bytes) -> Response<Full<Bytes>>) {
    let service = service_fn(move |request: Request<Incoming>| async move {
        let body = request.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>(respond(&body))
    });
    // How a connection ended is its client's affair.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn behind_poem(
    stream: TcpStream,
    local: SocketAddr,
    remote: SocketAddr,
    poem: Arc<BoxEndpoint<'static, poem::Response>>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let poem = Arc::clone(&poem);
        async move {
            let (local, remote) = (LocalAddr(Addr::SocketAddr(local)), RemoteAddr(Addr::SocketAddr(remote)));
            let response = poem.get_response((request, local, remote, Scheme::HTTP).into()).await;
            Ok::<Response<_>, Infallible>(response.into())
        }
    });
    // How a connection ended is its client's affair.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Gives back the body.
fn echo(body: &Bytes) -> Response<Full<Bytes>> {
    json(body.clone())
}

/// Reads a hook's request, and writes an answer that removes the last of the scopes.
fn read_and_write(body: &Bytes) -> Response<Full<Bytes>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer<'a> {
        remove_scopes: &'a [&'a str],
        additional_claims: Nothing,
    }

    #[derive(Serialize)]
    struct Nothing {}

    let answer = serde_json::from_slice::<Asked>(body).ok().and_then(|asked| {
        std::hint::black_box((asked.user.as_ref().map(|user| user.id), asked.client.id));
        let remove_scopes = asked.scopes.last_chunk::<1>()?;
        serde_json::to_vec(&Answer { remove_scopes, additional_claims: Nothing {} }).ok()
    });
    let is_read = answer.is_some();
    let mut response = json(answer.unwrap_or_default().into());
    if !is_read {
        *response.status_mut() = StatusCode::BAD_REQUEST;
    }
    response
}

fn json(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[derive(Debug, Deserialize, Object)]
struct Asking {
    user: Option<Party>,
    client: Party,
    scopes: Vec<String>,
}

#[derive(Debug, Deserialize, Object)]
struct Party {
    id: String,
}

#[derive(Debug, Default, Serialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
struct Answer {
    remove_scopes: Vec<String>,
    additional_claims: Claims,
}

#[derive(Debug, Default, Serialize, Object)]
struct Claims {}

fn answer(mut asking: Asking) -> Answer {
    std::hint::black_box((&asking.user, &asking.client));
    Answer { remove_scopes: asking.scopes.pop().into_iter().collect(), ..Answer::default() }
}

#[handler]
#[expect(clippy::unused_async, reason = "as handlers are")]
async fn customize(Json(asking): Json<Asking>) -> Json<Answer> {
    Json(answer(asking))
}

struct Api;

#[OpenApi]
#[expect(clippy::unused_async, reason = "as handlers are")]
impl Api {
    #[oai(path = "/v1/customize-access-token", method = "post")]
    async fn customize_access_token(&self, asking: payload::Json<Asking>) -> payload::Json<Answer> {
        payload::Json(answer(asking.0))
    }
}
