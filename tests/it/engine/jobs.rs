//! Container jobs in real containers: input, output, limits, and that nothing of one
//! outlives it. The image is the engine's, whose Python is the program.

use std::time::{Duration, Instant};

use infernet::engine::{
    ContainerRequest, EngineError, EngineEvent, EngineStream, Finish, JobImage, JobInput,
    JobOutput, Usage,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::engine_image::{EngineNode, docker, engine_image};

const LIMIT: Duration = Duration::from_secs(60);

/// The name of the image on the market.
const IMAGE: &str = "tools/python:3";

/// An image that runs a program of Python's.
fn python(program: &str) -> JobImage {
    let id = engine_image().image_id;
    let command = ["/usr/bin/python3", "-IS", "-c", program].map(str::to_owned).to_vec();
    JobImage { memory_mb: 128, scratch_mb: 8, pids: 32, ..JobImage::new(IMAGE, id, command) }
}

fn node(image: JobImage) -> EngineNode {
    EngineNode::new(Vec::new(), |config| config.images = vec![image])
}

fn request(body: Value) -> ContainerRequest {
    ContainerRequest {
        body,
        max_seconds: 60,
        output_bytes: 1_000_000,
        attempt: "an-attempt".to_owned(),
    }
}

/// Reads a stream to its end.
async fn read(mut stream: EngineStream) -> (String, Result<(Finish, Usage), EngineError>) {
    let mut text = String::new();
    loop {
        match tokio::time::timeout(LIMIT, stream.next()).await.unwrap().unwrap() {
            Ok(EngineEvent::Delta { text: delta }) => text.push_str(&delta),
            Ok(EngineEvent::Done { finish, .. }) => {
                assert!(stream.next().await.is_none());
                return (text, Ok((finish, stream.usage())));
            }
            Err(error) => return (text, Err(error)),
        }
    }
}

/// Runs one job on a node of its own and proves that nothing of it is left.
async fn run(
    image: JobImage,
    request: ContainerRequest,
) -> (String, Result<(Finish, Usage), EngineError>) {
    let node = node(image);
    let stream = node.pool.run_container(IMAGE, request, CancellationToken::new()).await.unwrap();
    let ended = read(stream).await;
    assert!(node.containers().is_empty() && node.sockets().is_empty());
    node.pool.stop_all().await;
    ended
}

#[tokio::test]
async fn the_input_comes_in_and_the_output_goes_out() {
    let program = "import sys, json, os, socket\n\
        text = sys.stdin.read()\n\
        same = json.load(open('/job/input.json'))\n\
        print(text.upper(), same, sys.argv[1:], os.getuid(), os.listdir('/sys/class/net'))\n\
        print('noise', file=sys.stderr)";
    let image = JobImage { args: true, ..python(program) };
    let body = json!({"input": "grüße", "args": ["-v", "two words"]});
    let (text, ended) = run(image.clone(), request(body)).await;
    assert_eq!(text, "GRÜSSE grüße ['-v', 'two words'] 65534 ['lo']\n");
    let (finish, usage) = ended.unwrap();
    assert_eq!(finish, Finish::Stop);
    assert!((1..30).contains(&usage.seconds.unwrap()), "{usage:?}");

    // Anything but a text comes in as JSON; and an image may want the file only.
    let (text, _) = run(image.clone(), request(json!({"input": {"a": [1]}}))).await;
    assert!(text.starts_with("{\"A\":[1]} {'a': [1]} [] "), "{text}");
    let program = "import sys; print(repr(sys.stdin.read()))";
    let image = JobImage { input: JobInput::File, ..python(program) };
    assert_eq!(run(image, request(json!({"input": "x"}))).await.0, "''\n");
}

#[tokio::test]
async fn what_is_not_allowed_does_not_run() {
    let good = python("pass");
    let nobody = JobImage { image: format!("sha256:{}", "0".repeat(64)), ..good.clone() };
    let (_, ended) = run(nobody, request(json!({}))).await;
    let error = ended.unwrap_err();
    assert!(matches!(error, EngineError::ImageMissing { .. }), "{error}");
    assert_eq!(error.attempt_code(), "engine_unavailable");
    let node = node(good);
    let args = request(json!({"args": ["x"]}));
    let error = node.pool.run_container(IMAGE, args, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, EngineError::BadRequest { .. }), "{error}");
    let other = request(json!({}));
    let error = node.pool.run_container("b", other, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, EngineError::UnknownModel { .. }), "{error}");
    assert!(node.containers().is_empty());
}

#[tokio::test]
async fn the_files_of_the_output_are_taken_and_links_are_not() {
    let directory = |program: &str| JobImage { output: JobOutput::Directory, ..python(program) };
    let program = "import os; os.mkdir('/job/output/a'); open('/job/output/a/b', 'w').write('x');\
        open('/job/output/c', 'wb').write(bytes([0, 255])); print('not this')";
    let (text, ended) = run(directory(program), request(json!({}))).await;
    assert_eq!(ended.unwrap().0, Finish::Stop);
    let wanted = json!({"files": [
        {"path": "a/b", "text": "x"},
        {"path": "c", "base64": "AP8="},
    ]});
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), wanted);
    for (program, wanted) in [
        ("import os; os.symlink('/etc/shadow', '/job/output/x')", "a link"),
        ("import os; os.symlink('../input.json', '/job/output/x')", "a link"),
        ("import os; os.mkfifo('/job/output/x')", "a device, pipe or socket"),
        ("open('/job/output/x', 'w').truncate(1 << 40)", "larger than"),
        ("open('/job/output/x', 'w').write('x' * 1000001)", "larger than"),
        ("[open(f'/job/output/{n}', 'w') for n in range(1100)]", "more than 1024 files"),
    ] {
        let (text, ended) = run(directory(program), request(json!({}))).await;
        let error = ended.unwrap_err();
        assert!(text.is_empty());
        let told = error.public_message();
        // The file with a claimed size of a terabyte dies of the limit of file sizes.
        let limited = program.contains("truncate") && told.contains("exit code");
        assert!(told.contains(wanted) || limited, "{program}: {told}");
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn an_archive_is_a_file_like_any_other() {
    // Half a gigabyte of zeros in half a megabyte: nobody here unpacks it.
    let program = "import gzip\n\
        with gzip.open('/job/output/bomb.gz', 'wb', 9) as bomb:\n\
        \x20   for _ in range(512): bomb.write(bytes(1 << 20))";
    let image = JobImage { output: JobOutput::Directory, ..python(program) };
    let before = resident();
    let (text, ended) = run(image, request(json!({}))).await;
    assert_eq!(ended.unwrap().0, Finish::Stop);
    let output: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(output["files"][0]["path"], "bomb.gz");
    let bytes = output["files"][0]["base64"].as_str().unwrap().len();
    assert!((400_000..1_000_000).contains(&bytes), "{bytes}");
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown}");
}

/// The memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_disk_that_is_filled_ends_the_job() {
    let program = "import time\n\
        for n in range(1000): open(f'/job/output/{n}', 'wb').write(bytes(4 << 20))\n\
        time.sleep(600)";
    let image = JobImage { output: JobOutput::Directory, ..python(program) };
    let begun = Instant::now();
    let (_, ended) = run(image, request(json!({}))).await;
    let error = ended.unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_flood_and_the_time_cut_the_output() {
    let flood = ContainerRequest { output_bytes: 1000, ..request(json!({})) };
    let (text, ended) = run(python("while True: print('flood ' * 1000)"), flood).await;
    assert_eq!((text.len(), ended.unwrap().0), (1000, Finish::Length));
    let short = ContainerRequest { max_seconds: 2, ..request(json!({})) };
    let program = "import time; print('so far', flush=True); time.sleep(600)";
    let (text, ended) = run(python(program), short).await;
    let (finish, usage) = ended.unwrap();
    assert_eq!((text.as_str(), finish), ("so far\n", Finish::Length));
    assert!((2..=4).contains(&usage.seconds.unwrap()), "{usage:?}");
}

#[tokio::test]
async fn a_program_that_fails_says_why() {
    let program = "import sys; print('part'); sys.exit('there is no such letter')";
    let (text, ended) = run(python(program), request(json!({}))).await;
    let error = ended.unwrap_err();
    assert_eq!(text, "part\n");
    let told = error.public_message();
    assert!(told.contains("exit code 1") && told.contains("no such letter"), "{told}");
    assert_eq!((error.attempt_code(), error.is_retryable()), ("bad_request", false));

    let (_, ended) = run(python("x = bytearray(1 << 30)"), request(json!({}))).await;
    let told = ended.unwrap_err().to_string();
    assert!(told.contains("128 MiB of memory"), "{told}");
    let program = "import sys; sys.stdout.buffer.write(bytes([255]))";
    let (_, ended) = run(python(program), request(json!({}))).await;
    assert!(ended.unwrap_err().to_string().contains("not UTF-8"));
    let nothing = JobImage { command: vec!["/no/such/program".to_owned()], ..python("") };
    let error = run(nothing, request(json!({}))).await.1.unwrap_err();
    assert_eq!(error.attempt_code(), "engine_unavailable", "{error}");
}

#[tokio::test]
async fn a_job_that_nobody_waits_for_ends() {
    let program = "import time; print('on', flush=True); time.sleep(600)";
    let node = node(python(program));
    for cancelled in [true, false] {
        let cancel = CancellationToken::new();
        let ask = request(json!({}));
        let mut stream = node.pool.run_container(IMAGE, ask, cancel.clone()).await.unwrap();
        assert!(matches!(stream.next().await, Some(Ok(EngineEvent::Delta { .. }))));
        let containers = node.containers();
        assert_eq!(containers.len(), 1);
        let labels = docker(&["inspect", "--format", "{{json .Config.Labels}}", &containers[0]]);
        let labels: Value = serde_json::from_slice(&labels.stdout).unwrap();
        assert_eq!(labels["infernet.attempt"], "an-attempt");
        if cancelled {
            cancel.cancel();
            assert_eq!(read(stream).await.1.unwrap().0, Finish::Cancelled);
        } else {
            // The slot is free again only when the container is gone.
            drop(stream);
            let again = request(json!({}));
            let again = node.pool.run_container(IMAGE, again, CancellationToken::new());
            drop(tokio::time::timeout(LIMIT, again).await.unwrap().unwrap());
        }
    }
    node.pool.stop_all().await;
    assert!(node.containers().is_empty() && node.sockets().is_empty());
    let late = node.pool.run_container(IMAGE, request(json!({})), CancellationToken::new()).await;
    assert!(matches!(late, Err(EngineError::Stopping)));
}
