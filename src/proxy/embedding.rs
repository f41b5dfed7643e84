//! `/v1/embeddings`: a job whose output is the list of the texts' vectors.

use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::choice::{Choice, Part};
use super::error::ApiError;
use super::market::Market;
use super::request::EmbeddingRequest;
use super::{JSON, with_job};

/// Answers a request for embeddings.
///
/// # Errors
/// It is refused or fails, or the node's answer is none.
pub(super) async fn answer(
    market: &Market,
    request: EmbeddingRequest,
) -> Result<Response, ApiError> {
    let mut choice = Choice::open(market, &request.job, false).await?;
    let (output, end) = choice.finish().await?;
    let Part::End { usage, .. } = end else {
        unreachable!("a finished choice ends with its end");
    };
    let vectors = serde_json::from_str::<Vec<Vec<f32>>>(&output)
        .ok()
        .filter(|vectors| vectors.len() == request.texts)
        .ok_or_else(|| ApiError::strange_answer("The node's vectors cannot be read."))?;
    let data: Vec<Value> = vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding = if request.base64 { encode(vector) } else { json!(vector) };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    let body = json!({
        "object": "list", "data": data, "model": request.model,
        "usage": { "prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens },
    });
    let response = ([(header::CONTENT_TYPE, JSON)], body.to_string()).into_response();
    Ok(with_job(response, request.job.id))
}

/// Writes a vector as OpenAI does for its own clients: little-endian 32-bit floats.
fn encode(vector: &[f32]) -> Value {
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    json!(STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_written_as_little_endian_floats() {
        assert_eq!(encode(&[1.0, -2.5]), "AACAPwAAIMA=");
    }
}
