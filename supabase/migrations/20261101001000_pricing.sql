-- What a job may cost: bounds on its tokens, and quotes.

-- What an offer costs for so many tokens, USD, at the ledger's 12 decimals.
create function infernet.price(p_input numeric, p_output numeric, p_input_tokens bigint, p_output_tokens bigint)
returns numeric
language sql immutable parallel safe as $$
  select round((p_input * p_input_tokens + p_output * p_output_tokens) / 1000000, 12)
$$;

-- Every text of an input that becomes tokens.
create function infernet.input_bytes(p_input jsonb) returns bigint
language sql immutable parallel safe set search_path = '' as $$
  select octet_length((p_input - array['temperature', 'top_p', 'top_k', 'min_p', 'seed'])::text)
$$;

-- Most tokens an input can be: no token is shorter than a byte, and a template adds a little.
create function infernet.input_bound(p_input jsonb) returns int
language sql stable set search_path = '' as $$
  select (infernet.input_bytes(p_input) + infernet.setting_int('input_tokens_base')
          + infernet.setting_int('input_tokens_message')
            * case jsonb_typeof(p_input -> 'messages') when 'array' then jsonb_array_length(p_input -> 'messages') else 0 end)::int
$$;

-- Refuses an input that no engine could take, with the reason.
create function infernet.check_input(p_kind text, p_input jsonb) returns void
language plpgsql stable set search_path = '' as $$
declare
  v_message jsonb;
  v_text    boolean := false;
begin
  if p_kind is null or p_kind not in ('chat', 'completion') then
    perform infernet.refuse(422, 'bad_input', format('Jobs of kind %s are not taken here.', coalesce(p_kind, 'null')),
      'Use chat or completion.');
  elsif p_input is null or jsonb_typeof(p_input) <> 'object' then
    perform infernet.refuse(422, 'bad_input', 'The input must be a JSON object.');
  elsif octet_length(p_input::text) > infernet.setting_int('prompt_bytes') then
    perform infernet.refuse(413, 'prompt_too_large',
      format('The prompt has %s bytes; at most %s are taken.', octet_length(p_input::text), infernet.setting_int('prompt_bytes')),
      'Shorten it.');
  elsif exists (select from jsonb_object_keys(p_input) k where not infernet.setting('input_keys') ? k) then
    perform infernet.refuse(422, 'bad_input',
      format('The input has a key that is not taken here: %s.',
             (select min(k) from jsonb_object_keys(p_input) k where not infernet.setting('input_keys') ? k)));
  end if;
  if p_kind = 'completion' then
    if jsonb_typeof(p_input -> 'prompt') is distinct from 'string' then
      perform infernet.refuse(422, 'bad_input', 'A completion needs a prompt that is a string.');
    end if;
    v_text := btrim(p_input ->> 'prompt', E' \t\r\n') <> '';
  else
    if jsonb_typeof(p_input -> 'messages') is distinct from 'array' then
      perform infernet.refuse(422, 'bad_input', 'A chat needs an array of messages.');
    end if;
    for v_message in select * from jsonb_array_elements(p_input -> 'messages') loop
      if jsonb_typeof(v_message) is distinct from 'object' or jsonb_typeof(v_message -> 'role') is distinct from 'string' then
        perform infernet.refuse(422, 'bad_input', 'Each message needs a role and a content.');
      end if;
      v_text := v_text or btrim(coalesce(v_message ->> 'content', ''), E' \t\r\n') <> '';
    end loop;
  end if;
  if not v_text then
    perform infernet.refuse(422, 'empty_prompt', 'The prompt is empty.');
  end if;
end $$;

-- The bound on a job's output tokens: what was asked for, or the default.
create function infernet.output_bound(p_max_tokens int) returns int
language plpgsql stable set search_path = '' as $$
declare
  v_most int := infernet.setting_int('output_tokens_max');
begin
  if p_max_tokens is not null and p_max_tokens not between 1 and v_most then
    perform infernet.refuse(422, 'bad_input', format('The output may have 1 to %s tokens.', v_most));
  end if;
  return coalesce(p_max_tokens, least(infernet.setting_int('output_tokens'), v_most));
end $$;

-- What offers of a model ask for so many tokens. Offers of suspended nodes do not count.
create function infernet.quote(p_model uuid, p_input_tokens int, p_output_tokens int)
returns table (offers bigint, online bigint, lowest numeric, highest numeric)
language plpgsql stable security definer set search_path = '' as $$
declare
  v_now timestamptz := infernet.clock();
begin
  return query
    select count(*), count(*) filter (where n.lease_until > v_now and not n.draining),
           min(infernet.price(o.price_input, o.price_output, p_input_tokens, p_output_tokens)),
           max(infernet.price(o.price_input, o.price_output, p_input_tokens, p_output_tokens))
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
  v_model  public.models;
  v_input  int;
  v_output int;
  v_quote  record;
begin
  perform infernet.require_user();
  v_model := infernet.find_model(p_model);
  perform infernet.check_input(case when p_input ? 'prompt' then 'completion' else 'chat' end, p_input);
  v_input := infernet.input_bound(p_input);
  v_output := infernet.output_bound(p_max_tokens);
  select * into v_quote from infernet.quote(v_model.id, v_input, v_output);
  return jsonb_build_object(
    'model', v_model.name, 'input_tokens', v_input, 'output_tokens', v_output,
    'offers', v_quote.offers, 'online', v_quote.online,
    'lowest', infernet.usd(v_quote.lowest), 'highest', infernet.usd(v_quote.highest),
    'cap', infernet.usd(v_quote.lowest * infernet.setting_number('cap_factor')));
end $$;
