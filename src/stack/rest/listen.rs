//! Reloads the catalogue when a migration says `notify pgrst`.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio_postgres::{AsyncMessage, Config, NoTls};
use tokio_util::sync::CancellationToken;

use super::Rest;

/// The channel that PostgREST listens on.
const CHANNEL: &str = "pgrst";

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Listens on a connection of its own until `stop`, and reloads the catalogue
/// at each notification and after each new connection, when some may have
/// been missed. A lost connection is made again, with growing pauses.
pub async fn reload_on_notify(rest: Rest, config: Config, stop: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    loop {
        let listened = stop.run_until_cancelled(listen(&rest, &config, &mut pause)).await;
        let Some(result) = listened else { return };
        if let Err(error) = result {
            tracing::debug!(error = %error, "listening for schema changes stopped");
        }
        let jittered = pause.mul_f64(0.5 + fastrand::f64());
        if stop.run_until_cancelled(tokio::time::sleep(jittered)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Listens until the connection ends.
async fn listen(
    rest: &Rest,
    config: &Config,
    pause: &mut Duration,
) -> Result<(), tokio_postgres::Error> {
    let mut config = config.clone();
    config.connect_timeout(Duration::from_secs(5));
    let (client, mut connection) = config.connect(NoTls).await?;
    let mut subscribing = pin!(client.batch_execute("listen pgrst"));
    let mut subscribed = false;
    loop {
        // The connection only moves while it is polled, so both are driven here.
        let changed = poll_fn(|context| {
            if !subscribed && let Poll::Ready(result) = subscribing.as_mut().poll(context) {
                subscribed = true;
                return Poll::Ready(result.map(|()| Some(true)));
            }
            match connection.poll_message(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(None) => Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok(AsyncMessage::Notification(notification)))) => {
                    Poll::Ready(Ok(Some(notification.channel() == CHANNEL)))
                }
                Poll::Ready(Some(Ok(_))) => Poll::Ready(Ok(Some(false))),
            }
        })
        .await?;
        match changed {
            None => return Ok(()),
            Some(false) => {}
            Some(true) => {
                *pause = FIRST_PAUSE;
                if let Err(error) = rest.reload().await {
                    tracing::warn!(error = %error, "the catalogue was not reloaded");
                }
            }
        }
    }
}
