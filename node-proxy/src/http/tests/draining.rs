// SPDX-License-Identifier: Apache-2.0
//! A proxy that ends answers what has begun, and takes no more.

use std::time::Duration;

use bytes::Bytes;
use culvert_api::policy::InboundPolicy;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::{
    http2::{beside, next},
    rig::{GET, OK, answer, assert_reads, head, mesh},
};
use crate::{
    carry::tests::rig::{Rig, SERVICE, ok, read_to_end, rig},
    fixture::eventually,
};

/// How long what ends may take here.
const SOON: Duration = Duration::from_secs(5);

fn drain(rig: &Rig) {
    rig.fixture.proxy.draining.send_replace(true);
}

async fn assert_closing(client: &mut TcpStream, app: &mut TcpStream) {
    answer(app, OK).await;
    let answered = head(client).await;
    let closes = answered.contains("connection: close\r\n");
    assert!(
        answered.starts_with("HTTP/1.1 200 ") && closes,
        "{answered}"
    );
    assert_reads(client, b"hello").await;
    let (more, end) = read_to_end(client).await;
    assert!(more.is_empty() && end.is_ok(), "{more:?}, {end:?}");
}

async fn all_ended(rig: &Rig) {
    let pods = [&rig.web, &rig.cart];
    let open = || pods.map(|pod| pod.metrics().open_connections());
    eventually("all ended", || open() == [0, 0]).await;
}

#[test]
fn http1_is_answered_and_closed() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut resting = rig.dial_out(SERVICE).await;
        ok(resting.write_all(GET).await);
        let (mut app, _) = rig.accepted().await;
        head(&mut app).await;
        answer(&mut app, OK).await;
        head(&mut resting).await;
        assert_reads(&mut resting, b"hello").await;

        let mut waiting = rig.dial_out(SERVICE).await;
        ok(waiting.write_all(GET).await);
        head(&mut app).await;
        drain(&rig);
        // Neither the answer nor the pool is hurried.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_closing(&mut waiting, &mut app).await;
        let (more, end) = read_to_end(&mut resting).await;
        assert!(more.is_empty() && end.is_ok(), "{more:?}, {end:?}");
        drop(app);
        all_ended(&rig).await;
    });
}

#[test]
fn a_request_that_crosses_the_end_is_answered() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut resting = rig.dial_out(SERVICE).await;
        ok(resting.write_all(GET).await);
        let (mut app, _) = rig.accepted().await;
        head(&mut app).await;
        answer(&mut app, OK).await;
        head(&mut resting).await;
        assert_reads(&mut resting, b"hello").await;
        drain(&rig);
        tokio::time::sleep(Duration::from_millis(200)).await;
        ok(resting.write_all(GET).await);
        head(&mut app).await;
        assert_closing(&mut resting, &mut app).await;
        drop(app);
        all_ended(&rig).await;
    });
}

#[test]
fn http2_is_answered_and_told_to_go_away() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let (mut client, driver) = ok(h2::client::handshake(rig.dial_out(SERVICE).await).await);
        let driver = tokio::spawn(driver);
        let get = || ok(http::Request::get("http://cart/").body(()));
        let (answered, _) = ok(client.send_request(get(), true));
        let (tcp, _) = rig.accepted().await;
        let mut app = ok(h2::server::handshake(tcp).await);
        let (_, mut respond) = next(&mut app).await;
        drain(&rig);
        let told = async {
            while std::future::poll_fn(|cx| client.poll_ready(cx))
                .await
                .is_ok()
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        beside(&mut app, told).await;
        let mut body = ok(respond.send_response(http::Response::new(()), false));
        ok(body.send_data(Bytes::from_static(b"hello"), true));
        drop((respond, body));
        let answer = async {
            let mut body = ok(answered.await).into_body();
            body.data().await.map(ok)
        };
        let serving = tokio::spawn(async move { while app.accept().await.is_some() {} });
        let answer = ok(timeout(SOON, answer).await);
        assert_eq!(answer.as_deref(), Some(&b"hello"[..]));
        drop(client);
        assert!(ok(ok(timeout(SOON, driver).await)).is_ok());
        ok(ok(timeout(SOON, serving).await));
        all_ended(&rig).await;
    });
}
