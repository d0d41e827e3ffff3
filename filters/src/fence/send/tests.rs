//! Requests stepped by hand through the layer, over a fence with the clock stopped.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Empty, Full};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::fence::tests::script::Script;
use crate::fence::tests::{SETTLE, begin, claim, cutting, fence_over, kept};
use crate::fence::{Claim, Fence};

/// A body that gives what the test sends it.
struct Given(mpsc::UnboundedReceiver<Result<Frame<Bytes>, &'static str>>);

impl Body for Given {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.0.poll_recv(cx)
    }
}

fn given() -> (
    mpsc::UnboundedSender<Result<Frame<Bytes>, &'static str>>,
    Given,
) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Given(receiver))
}

fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

/// A service that answers once, when the test says so, and keeps the request's body until then.
struct Once<RB>(Option<oneshot::Receiver<Result<Response<RB>, Refusal>>>);

impl<B: Send + 'static, RB: Send + 'static> Service<Request<B>> for Once<RB> {
    type Response = Response<RB>;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Response<RB>, Refusal>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answer = self.0.take().expect("one call");
        Box::pin(async move {
            let _request = request;
            answer.await.expect("the service panics")
        })
    }
}

type Answer<RB> = oneshot::Sender<Result<Response<RB>, Refusal>>;
type Sent<RB> =
    Pin<Box<SendFuture<<Once<RB> as Service<Request<RequestBody<Given>>>>::Future, RB>>>;

/// Admits a request with this body and calls the layer with it.
async fn call<RB, B>(
    fence: &Fence,
    claim: Claim,
    body: B,
) -> (
    Answer<RB>,
    Pin<Box<SendFuture<Pin<Box<dyn Future<Output = Result<Response<RB>, Refusal>> + Send>>, RB>>>,
)
where
    RB: Body + Send + 'static,
    B: Body + Send + 'static,
{
    let mut request = Request::new(body);
    let admission = fence.admit(claim).await.unwrap();
    Passage::of(&mut request).facts().admission = Some(admission);
    let (answer, receiver) = oneshot::channel();
    let mut service = SendLayer.layer(Once(Some(receiver)));
    (answer, Box::pin(service.call(request)))
}

/// A write with token 33 whose body has been read.
async fn write(fence: &Fence) -> (Answer<Given>, Sent<Given>) {
    call(fence, claim(33), Empty::<Bytes>::new()).await
}

fn fence() -> Fence {
    fence_over(&Script::new(&[kept("42", 33)]))
}

fn step<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn step_body<B: Body>(body: &mut Pin<Box<ResponseBody<B>>>) -> Poll<Option<super::Given<B>>> {
    body.as_mut()
        .poll_frame(&mut Context::from_waker(Waker::noop()))
}

fn in_flight(fence: &Fence) -> (usize, usize) {
    let totals = fence.totals();
    (totals.in_flight, totals.unsettled)
}

/// The response of a service that has answered.
fn respond<RB: Body + Send + 'static>(
    answer: Answer<RB>,
    body: RB,
    sent: &mut Pin<
        Box<SendFuture<Pin<Box<dyn Future<Output = Result<Response<RB>, Refusal>> + Send>>, RB>>,
    >,
) -> Pin<Box<ResponseBody<RB>>> {
    assert!(answer.send(Ok(Response::new(body))).is_ok());
    match step(sent) {
        Poll::Ready(Ok(response)) => Box::pin(response.into_body()),
        other => panic!("{:?}", other.map(|answer| answer.map(|_| ()))),
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_is_in_flight_from_its_call_to_the_end_of_its_response() {
    let fence = fence();
    let (answer, mut sent) = write(&fence).await;
    assert_eq!(in_flight(&fence), (1, 0));
    assert!(step(&mut sent).is_pending());
    let (chunks, body) = given();
    let mut body = respond(answer, body, &mut sent);
    assert_eq!(in_flight(&fence), (1, 0));
    assert!(!body.is_end_stream());
    chunks.send(Ok(data("a"))).unwrap();
    assert!(matches!(step_body(&mut body), Poll::Ready(Some(Ok(_)))));
    assert!(step_body(&mut body).is_pending());
    assert_eq!(in_flight(&fence), (1, 0));
    drop(chunks);
    assert!(matches!(step_body(&mut body), Poll::Ready(None)));
    assert_eq!(in_flight(&fence), (0, 0));
    assert!(body.is_end_stream());
    assert!(matches!(step_body(&mut body), Poll::Ready(None)));
    drop((body, sent));
    assert_eq!(in_flight(&fence), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_body_ends_the_write_at_once() {
    let fence = fence();
    let (answer, mut sent) = call(&fence, claim(33), Empty::<Bytes>::new()).await;
    let body = respond(answer, Empty::<Bytes>::new(), &mut sent);
    assert_eq!(in_flight(&fence), (0, 0));
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_body_whose_end_nobody_polls_has_completed() {
    let fence = fence();
    let (answer, mut sent) = call(&fence, claim(33), Empty::<Bytes>::new()).await;
    let mut body = respond(answer, Full::new(Bytes::from_static(b"a")), &mut sent);
    assert_eq!(body.size_hint().exact(), Some(1));
    assert_eq!(in_flight(&fence), (1, 0));
    assert!(matches!(step_body(&mut body), Poll::Ready(Some(Ok(_)))));
    drop(body);
    assert_eq!(in_flight(&fence), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_before_its_end_is_unknown_and_settles() {
    let fence = fence();
    let (_answer, mut sent) = write(&fence).await;
    assert!(step(&mut sent).is_pending());
    drop(sent);
    assert_eq!(in_flight(&fence), (0, 1));
    let (answer, mut sent) = write(&fence).await;
    let (_chunks, body) = given();
    drop(respond(answer, body, &mut sent));
    assert_eq!(in_flight(&fence), (0, 2));
    tokio::time::sleep(SETTLE * 2).await;
    assert!(fence.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_failure_counts_as_what_it_says() {
    let fence = fence();
    for (outcome, unsettled) in [(Outcome::NotForwarded, 0), (Outcome::Unknown, 1)] {
        let (answer, mut sent) = write(&fence).await;
        let refusal = Refusal::new(Reason::Busy, "x").with_outcome(outcome);
        assert!(answer.send(Err(refusal)).is_ok());
        assert!(matches!(step(&mut sent), Poll::Ready(Err(_))));
        assert_eq!(in_flight(&fence), (0, unsettled));
    }
    let (answer, mut sent) = write(&fence).await;
    let (chunks, body) = given();
    let mut body = respond(answer, body, &mut sent);
    chunks.send(Err("broken")).unwrap();
    let failed = step_body(&mut body);
    assert!(matches!(
        failed,
        Poll::Ready(Some(Err(BodyError::Inner("broken"))))
    ));
    assert_eq!(in_flight(&fence), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_newer_token_cuts_an_upload_and_waits_for_it_to_settle() {
    // C1
    let fence = fence();
    let (upload, body) = given();
    let (answer, mut sent) = call::<Given, _>(&fence, claim(33), body).await;
    assert!(step(&mut sent).is_pending());
    let newer = begin(&fence, claim(34)).await;
    assert!(
        upload.is_closed(),
        "the service's future was dropped at once"
    );
    assert!(answer.is_closed());
    assert_eq!(in_flight(&fence), (0, 1));
    let Poll::Ready(Err(refusal)) = step(&mut sent) else {
        panic!("it was cut")
    };
    assert_eq!(refusal.reason, Reason::Superseded);
    assert_eq!(refusal.outcome, Outcome::Unknown);
    assert!(newer.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_received_whole_is_waited_for() {
    let fence = fence();
    let (answer, mut sent) = write(&fence).await;
    assert!(step(&mut sent).is_pending());
    let newer = begin(&fence, claim(34)).await;
    let (chunks, body) = given();
    let mut body = respond(answer, body, &mut sent);
    drop(chunks);
    assert!(matches!(step_body(&mut body), Poll::Ready(None)));
    assert!(newer.await.is_ok());
    assert!(fence.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn an_upload_is_whole_when_its_body_has_been_read_to_the_end() {
    let read = Arc::new(AtomicBool::new(false));
    let mut body = Box::pin(RequestBody {
        body: Full::new(Bytes::from_static(b"a")),
        read: Arc::clone(&read),
    });
    let mut cx = Context::from_waker(Waker::noop());
    assert!(!read.load(Ordering::SeqCst));
    assert!(body.as_mut().poll_frame(&mut cx).is_ready());
    assert!(read.load(Ordering::SeqCst), "no byte is left");
    assert!(body.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_cut_breaks_off() {
    let fence = fence();
    let (answer, mut sent) = write(&fence).await;
    let (chunks, body) = given();
    let mut body = respond(answer, body, &mut sent);
    let newer = begin(&fence, cutting(34)).await;
    assert!(newer.await.is_ok());
    assert!(chunks.is_closed());
    assert!(!body.is_end_stream());
    assert!(matches!(
        step_body(&mut body),
        Poll::Ready(Some(Err(BodyError::Cut)))
    ));
    assert!(matches!(step_body(&mut body), Poll::Ready(None)));
}

#[tokio::test(start_paused = true)]
async fn a_cut_wakes_the_one_that_drives() {
    struct Flag(AtomicBool);
    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let fence = fence();
    let (_answer, mut sent) = write(&fence).await;
    let flag = Arc::new(Flag(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&flag));
    let polled = sent.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    fence.cut_all();
    assert!(flag.0.load(Ordering::SeqCst));
    assert!(matches!(step(&mut sent), Poll::Ready(Err(_))));
}

#[tokio::test(start_paused = true)]
async fn a_cut_while_the_service_is_polled_is_carried_out_after_that_poll() {
    struct CutsItself(Fence);
    impl<B> Service<Request<B>> for CutsItself {
        type Response = Response<Empty<Bytes>>;
        type Error = Infallible;
        type Future =
            Pin<Box<dyn Future<Output = Result<Response<Empty<Bytes>>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<B>) -> Self::Future {
            let fence = self.0.clone();
            Box::pin(async move {
                fence.cut_all();
                std::future::pending().await
            })
        }
    }
    let fence = fence();
    let mut request = Request::new(Empty::<Bytes>::new());
    let admission = fence.admit(claim(33)).await.unwrap();
    Passage::of(&mut request).facts().admission = Some(admission);
    let mut service = SendLayer.layer(CutsItself(fence.clone()));
    let mut sent = Box::pin(service.call(request));
    // The cut has woken the driver, which is polled again.
    assert!(step(&mut sent).is_pending());
    assert_eq!(in_flight(&fence), (0, 1));
    assert!(matches!(step(&mut sent), Poll::Ready(Err(_))));
}

#[tokio::test(start_paused = true)]
async fn what_was_overtaken_since_it_was_admitted_is_not_called() {
    // C2
    let fence = fence();
    let mut request = Request::new(Empty::<Bytes>::new());
    let admission = fence.admit(claim(33)).await.unwrap();
    Passage::of(&mut request).facts().admission = Some(admission);
    drop(fence.admit(claim(34)).await.unwrap());
    let mut service = SendLayer.layer(Once::<Given>(None));
    let mut sent = Box::pin(service.call(request));
    let Poll::Ready(Err(refusal)) = step(&mut sent) else {
        panic!("it was sent")
    };
    assert_eq!(refusal.reason, Reason::StaleToken);
    assert_eq!(refusal.outcome, Outcome::NotForwarded);
}

#[tokio::test(start_paused = true)]
async fn reads_and_what_is_not_fenced_pass_as_they_are() {
    let fence = fence();
    let mut reads = claim(33);
    reads.write = false;
    let (answer, mut sent) = call(&fence, reads, Empty::<Bytes>::new()).await;
    assert_eq!(in_flight(&fence), (0, 0));
    let (chunks, body) = given();
    let mut body = respond(answer, body, &mut sent);
    chunks.send(Ok(data("a"))).unwrap();
    assert!(matches!(step_body(&mut body), Poll::Ready(Some(Ok(_)))));
    let (answer, receiver) = oneshot::channel();
    let mut service = SendLayer.layer(Once(Some(receiver)));
    let mut sent = Box::pin(service.call(Request::new(Empty::<Bytes>::new())));
    let _body = respond(answer, Empty::<Bytes>::new(), &mut sent);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_panics_leaves_an_unknown_outcome() {
    let fence = fence();
    let (answer, mut sent) = write(&fence).await;
    drop(answer);
    let panicked = catch_unwind(AssertUnwindSafe(|| step(&mut sent).is_ready()));
    assert!(panicked.is_err());
    drop(sent);
    assert_eq!(in_flight(&fence), (0, 1));
    tokio::time::sleep(SETTLE + Duration::from_secs(1)).await;
    assert!(fence.is_quiet());
}
