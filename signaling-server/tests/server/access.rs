//! Who gets in, what pages carry, what survives a restart.

use super::support::{Device, House, join_request, refusal};
use barycenter_protocol::ProtocolVersion;
use barycenter_protocol::api::{Invite, Version};
use barycenter_protocol::auth::Invitation;
use reqwest::StatusCode;

#[tokio::test(flavor = "multi_thread")]
async fn without_the_secret_there_is_nothing() {
    let house = House::open().await;
    let client = &house.client;
    let paths = [
        "/api/models", "/api/models/tiny/manifest", "/api/models/tiny/files/0", "/api/datasets", "/api/datasets/demo-home/samples?model=tiny",
        "/api/nodes/1/stream", "/api/snapshots", "/api/invite", "/api/runs", "/api/runs/1/checkpoint", "/api/anything",
    ];
    for path in paths {
        for token in [None, Some("x"), Some(house.server.secret().as_str())] {
            let mut request = client.http.get(format!("{}{path}", client.base));
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let (status, sentence) = refusal(request.send().await.unwrap()).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
            assert!(sentence.contains("scan the code"));
        }
    }
    for path in ["/api/join", "/api/runs", "/api/datasets?name=x.txt"] {
        let response = client.http.post(format!("{}{path}", client.base)).body("{}").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    let version: Version = client.http.get(format!("{}/api/version", client.base)).send().await.unwrap().json().await.unwrap();
    assert_eq!(version.protocol, barycenter_protocol::PROTOCOL_VERSION);
    let (status, _) = refusal(client.get("/api/anything").await).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_another_version_is_refused_with_a_sentence() {
    let house = House::open().await;
    let mut request = join_request("old page");
    request.version = ProtocolVersion { major: 99, minor: 0 };
    let (status, sentence) = refusal(house.client.post("/api/join", &request).await).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(sentence.contains("99.0") && sentence.contains("reload"), "{sentence}");
    let (status, sentence) = refusal(house.client.post("/api/join", &"nonsense").await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(sentence.contains("reload"), "{sentence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_isolated_and_never_stale() {
    let house = House::open().await;
    let get = |path: &str| house.client.http.get(format!("{}{path}", house.client.base));
    let page = get("/").send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    for (header, value) in [
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-embedder-policy", "require-corp"),
        ("cross-origin-resource-policy", "same-origin"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-cache"),
    ] {
        assert_eq!(page.headers()[header], value);
    }
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("'wasm-unsafe-eval'"));
    let tag = page.headers()["etag"].clone();
    assert_eq!(get("/").header("if-none-match", tag).send().await.unwrap().status(), StatusCode::NOT_MODIFIED);
    let script = get("/assets/app.js").send().await.unwrap();
    assert!(script.headers()["content-type"].to_str().unwrap().contains("javascript"));
    for path in ["/assets/../../data/secret", "/assets/%2e%2e/%2e%2e/data/secret", "/assets//etc/passwd", "/assets/none.js", "/none"] {
        assert_eq!(get(path).send().await.unwrap().status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_typed_with_http_leads_to_the_page() {
    let house = House::open().await;
    let address = format!("http://127.0.0.1:{}/", house.server.address().port());
    let page = house.client.http.get(&address).send().await.unwrap();
    assert_eq!((page.status(), page.url().scheme()), (StatusCode::OK, "https"));
    // What carries something is not sent on: it was read by anybody on the way.
    let posted = house.client.http.post(format!("{address}api/runs")).body("{}").send().await.unwrap();
    assert_eq!(posted.status(), StatusCode::BAD_REQUEST);
    assert!(posted.text().await.unwrap().contains("https://"));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_survive_a_restart() {
    let house = House::open().await;
    let invite: Invite = house.client.get_json("/api/invite").await;
    assert_eq!(invite.url, house.server.invite_url());
    assert!(invite.svg.contains("<svg"));
    assert!(Invitation::parse(&invite.url).is_ok());
    assert!(house.server.local_url().starts_with("https://localhost:"));
    let first = Device::join(&house.client, "a phone").await;
    let house = house.restart().await;
    assert_eq!(house.server.invite_url(), invite.url);
    let (status, sentence) = refusal(first.say(&[]).await).await;
    assert_eq!(status, StatusCode::GONE);
    assert!(sentence.contains("join again"));
    let second = Device::join(&house.client, "a phone").await;
    assert!(second.node > first.node, "ids are never used twice");
}
