-- What a job may cost: bounds on its tokens, and quotes.

-- What an offer costs for so many tokens and seconds, USD, at the ledger's 12 decimals.
create function infernet.price(
  p_input numeric, p_output numeric, p_second numeric, p_input_tokens bigint, p_output_tokens bigint, p_seconds bigint)
returns numeric
language sql immutable parallel safe as $$
  select round((p_input * p_input_tokens + p_output * p_output_tokens) / 1000000 + p_second * p_seconds, 12)
$$;

-- Most tokens an input can be: no token is shorter than a byte, and a template adds a little.
create function infernet.input_bound(p_settings jsonb, p_input jsonb) returns int
language sql immutable parallel safe as $$
  select (octet_length((p_input - array['temperature', 'top_p', 'top_k', 'min_p', 'seed'])::text)
          + (p_settings -> 'input_tokens_base')::int
          + case jsonb_typeof(p_input -> 'messages') when 'array'
                 then (p_settings -> 'input_tokens_message')::int * jsonb_array_length(p_input -> 'messages') else 0 end)::int
$$;

-- Refuses an input that no node could take, with the reason.
create function infernet.check_input(p_settings jsonb, p_kind text, p_input jsonb) returns void
language plpgsql immutable set search_path = '' as $$
declare
  v_bytes int := octet_length(p_input::text);
  v_keys  jsonb := case p_kind when 'container' then '["input", "args"]' when 'embedding' then '["input", "dimensions"]'
                               else p_settings -> 'input_keys' end;
  v_key   text;
begin
  if p_kind is null or p_kind not in ('chat', 'completion', 'embedding', 'container') then
    perform infernet.refuse(422, 'bad_input', format('Jobs of kind %s are not taken here.', coalesce(p_kind, 'null')),
      'Use chat, completion, embedding or container.');
  elsif p_input is null or jsonb_typeof(p_input) <> 'object' then
    perform infernet.refuse(422, 'bad_input', 'The input must be a JSON object.');
  elsif v_bytes > (p_settings -> 'prompt_bytes')::int then
    perform infernet.refuse(413, 'prompt_too_large',
      format('The prompt has %s bytes; at most %s are taken.', v_bytes, p_settings ->> 'prompt_bytes'), 'Shorten it.');
  end if;
  select min(k) into v_key from jsonb_object_keys(p_input) k where not v_keys ? k;
  if v_key is not null then
    perform infernet.refuse(422, 'bad_input', format('The input has a key that is not taken here: %s.', v_key));
  elsif p_kind = 'container' then
    if jsonb_typeof(coalesce(p_input -> 'args', '[]')) <> 'array'
       or jsonb_path_exists(p_input, '$.args[*] ? (@.type() != "string")') then
      perform infernet.refuse(422, 'bad_input', 'The arguments of a container must be an array of strings.');
    end if;
    return;
  elsif p_kind = 'embedding' then
    if jsonb_typeof(p_input -> 'input') is distinct from 'string'
       and (jsonb_typeof(p_input -> 'input') is distinct from 'array'
            or jsonb_path_exists(p_input, 'strict $.input[*] ? (@.type() != "string")')) then
      perform infernet.refuse(422, 'bad_input', 'Vectors are made of a text, or of an array of texts.');
    elsif not jsonb_path_exists(p_input, 'lax $.input[*] ? (@ == "")') and p_input -> 'input' <> '[]' then
      return;
    end if;
  elsif p_kind = 'completion' then
    if jsonb_typeof(p_input -> 'prompt') is distinct from 'string' then
      perform infernet.refuse(422, 'bad_input', 'A completion needs a prompt that is a string.');
    elsif btrim(p_input ->> 'prompt', E' \t\r\n') <> '' then
      return;
    end if;
  else
    if jsonb_typeof(p_input -> 'messages') is distinct from 'array' then
      perform infernet.refuse(422, 'bad_input', 'A chat needs an array of messages.');
    elsif jsonb_path_exists(p_input, 'strict $.messages[*] ? (@.type() != "object")')
       or jsonb_path_exists(p_input, '$.messages[*] ? (!(exists(@.role)) || @.role.type() != "string")') then
      perform infernet.refuse(422, 'bad_input', 'Each message needs a role and a content.');
    elsif exists (select from jsonb_array_elements(p_input -> 'messages') m
                  where btrim(coalesce(m ->> 'content', ''), E' \t\r\n') <> '') then
      return;
    end if;
  end if;
  perform infernet.refuse(422, 'empty_prompt', 'The prompt is empty.');
end $$;

-- The bound on a job's output tokens, or on a container's seconds: what was asked for, or the default.
create function infernet.output_bound(p_settings jsonb, p_kind text, p_max int) returns int
language plpgsql immutable set search_path = '' as $$
declare
  v_unit text := case p_kind when 'container' then 'container_secs' else 'output_tokens' end;
  v_most int := (p_settings -> (v_unit || '_max'))::int;
begin
  if p_max is not null and p_max not between 1 and v_most then
    perform infernet.refuse(422, 'bad_input', case p_kind
      when 'container' then format('A container may run for 1 to %s seconds.', v_most)
      else format('The output may have 1 to %s tokens.', v_most) end);
  end if;
  return coalesce(p_max, least((p_settings -> v_unit)::int, v_most));
end $$;

-- What offers of a model ask for so many tokens and seconds. Offers of suspended nodes do not count.
create function infernet.quote(p_model uuid, p_input_tokens int, p_output_tokens int, p_seconds int)
returns table (offers bigint, online bigint, lowest numeric, highest numeric)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_now timestamptz := infernet.clock();
begin
  return query
    select count(*), count(*) filter (where n.lease_until > v_now and not n.draining),
           min(infernet.price(o.price_input, o.price_output, o.price_second, p_input_tokens, p_output_tokens, p_seconds)),
           max(infernet.price(o.price_input, o.price_output, o.price_second, p_input_tokens, p_output_tokens, p_seconds))
    from public.offers o join public.node_liveness n on n.node_id = o.provider_id
    where o.model_id = p_model and o.enabled and o.approved;
end $$;

create function infernet.find_model(p_name text) returns public.models
language plpgsql stable security definer set search_path = '' as $$
declare
  v_model public.models;
begin
  select * into v_model from public.models m where m.name = p_name;
  if not found then
    perform infernet.refuse(404, 'unknown_model', format('Model %s is not known here.', coalesce(left(p_name, 100), 'null')),
      coalesce('Known models: ' || (select string_agg(m.name, ', ' order by m.name)
                                    from (select name from public.models where visibility = 'public' order by name limit 20) m),
               'No model is offered here yet.'));
  end if;
  return v_model;
end $$;

create function infernet.quote_job(p_model text, p_input jsonb, p_max_tokens int) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  v_settings jsonb := infernet.settings_now();
  v_model    public.models;
  v_kind     text;
  v_input    int;
  v_output   int;
  v_quote    record;
begin
  perform infernet.require_user();
  v_model := infernet.find_model(p_model);
  v_kind := case when v_model.is_image then 'container' when p_input ? 'prompt' then 'completion' else 'chat' end;
  perform infernet.check_input(v_settings, v_kind, p_input);
  v_output := infernet.output_bound(v_settings, v_kind, p_max_tokens);
  v_input := case when v_model.is_image then 0 else infernet.input_bound(v_settings, p_input) end;
  select * into v_quote from infernet.quote(v_model.id, v_input, case when v_model.is_image then 0 else v_output end,
                                            case when v_model.is_image then v_output else 0 end);
  return jsonb_build_object(
    'model', v_model.name, 'input_tokens', v_input,
    'output_tokens', case when not v_model.is_image then v_output end, 'seconds', case when v_model.is_image then v_output end,
    'offers', v_quote.offers, 'online', v_quote.online,
    'lowest', infernet.usd(v_quote.lowest), 'highest', infernet.usd(v_quote.highest),
    'cap', infernet.usd(v_quote.lowest * (v_settings -> 'cap_factor')::numeric));
end $$;
