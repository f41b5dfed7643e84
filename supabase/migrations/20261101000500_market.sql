-- The market: what can be asked for (models, images of containers), and what each provider asks for
-- serving it.

create table public.models (
  id             uuid primary key default gen_random_uuid(),
  name           text not null unique check (name ~ '^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}$'),
  is_image       boolean not null default false,
  family         text check (length(family) <= 80),
  context_length int check (context_length > 0),
  visibility     text not null default 'public' check (visibility in ('public', 'hidden')),
  created_at     timestamptz not null default now()
);
alter table public.models enable row level security;

-- An offer: this provider serves this model at these prices (USD per million tokens) or runs this image
-- (USD per second), so many at a time. listed is kept true while its provider is approved and public.
-- What a job may need of the machine, and what is thought of it, is copied from the provider, so that
-- matching reads no fourth table.
create table public.offers (
  id             uuid primary key default gen_random_uuid(),
  provider_id    uuid not null references public.providers (id),
  model_id       uuid not null references public.models (id),
  price_input    numeric(38,12) not null default 0 check (price_input >= 0),
  price_output   numeric(38,12) not null default 0 check (price_output >= 0),
  price_second   numeric(38,12) not null default 0 check (price_second >= 0),
  slots          int not null check (slots between 1 and 1024),
  model_digest   text check (model_digest ~ '^[0-9a-f]{64}$'),
  context_length int check (context_length > 0),
  vram_gb        int not null default 0,
  labels         text[] not null default '{}',
  region         text,
  reputation     int not null default 50 check (reputation between 0 and 100),
  enabled        boolean not null default true,
  approved       boolean not null default false,
  listed         boolean not null default false,
  created_at     timestamptz not null default now(),
  unique (provider_id, model_id)
);
alter table public.offers enable row level security;
create index offers_market on public.offers (model_id, id) where enabled and approved;

-- What the server has seen of an offer: output tokens a second (a moving average) and when it last finished a
-- job. The lock of this row is the one guard against giving a slot twice: whoever gives one away holds it,
-- and counts the live attempts. Nobody needs it to give a slot back, so none is ever left taken.
create table infernet.offer_load (
  offer_id  uuid primary key references public.offers (id),
  slots     int not null check (slots >= 1),
  speed     real,
  last_done timestamptz
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 100);
alter table infernet.offer_load enable row level security;

-- Writes one offer of a provider; each is one element of register_node's p_offers. p_serves: it is the agent
-- that says so, which knows the file that it serves. Nobody else need know it, and whoever names none leaves it.
create function infernet.put_offer(p_node public.providers, p_offer jsonb, p_serves boolean) returns uuid
language plpgsql security definer set search_path = '' as $$
declare
  v_model  uuid;
  v_offer  uuid;
  v_name   text := p_offer ->> 'model';
  v_image  boolean := p_offer ? 'image';
  v_input  numeric := 0;
  v_output numeric := 0;
  v_second numeric := 0;
  v_slots  int;
  v_length int;
begin
  if v_image then
    v_name := p_offer ->> 'image';
  end if;
  begin
    if v_image then
      v_second := (p_offer ->> 'price_second')::numeric;
    else
      v_input := coalesce((p_offer ->> 'price_input')::numeric, infernet.setting_number('price_input_default'));
      v_output := coalesce((p_offer ->> 'price_output')::numeric, infernet.setting_number('price_output_default'));
    end if;
    v_slots := coalesce((p_offer ->> 'slots')::int, 1);
    v_length := (p_offer ->> 'context_length')::int;
  exception when invalid_text_representation or numeric_value_out_of_range then
    perform infernet.refuse(422, 'bad_offer',
      format('The offer for %s has a price, slots or a context length that is no number.', left(v_name, 100)));
  end;
  if v_name is null or v_name !~ (case when v_image then '^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}$' else '^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$' end) then
    perform infernet.refuse(422, 'bad_offer', format('%s is no name of %s.', coalesce(quote_literal(left(v_name, 100)), 'Nothing'),
                                                     case when v_image then 'an image' else 'a model' end));
  elsif v_image and (v_second is null or v_second = 'NaN'
                     or v_second not between infernet.setting_number('price_second_min') and infernet.setting_number('price_second_max')) then
    perform infernet.refuse(422, 'bad_offer', format('%s needs a price_second between %s and %s USD.', v_name,
      infernet.setting_number('price_second_min'), infernet.setting_number('price_second_max')));
  elsif not v_image and (v_input = 'NaN' or v_output = 'NaN'
        or v_input not between infernet.setting_number('price_input_min') and infernet.setting_number('price_max')
        or v_output not between infernet.setting_number('price_output_min') and infernet.setting_number('price_max')) then
    perform infernet.refuse(422, 'bad_offer',
      format('The prices of %s must be between %s (input), %s (output) and %s USD per million tokens.', v_name,
             infernet.setting_number('price_input_min'), infernet.setting_number('price_output_min'), infernet.setting_number('price_max')));
  elsif v_slots not between 1 and 1024 then
    perform infernet.refuse(422, 'bad_offer', format('%s needs 1 to 1024 slots.', v_name));
  elsif coalesce(p_offer ->> 'digest', repeat('0', 64)) !~ '^[0-9a-f]{64}$' then
    perform infernet.refuse(422, 'bad_offer', format('The digest of %s is no sha256 in hex.', v_name));
  elsif v_length <= 0 then
    perform infernet.refuse(422, 'bad_offer', format('The context length of %s must be above 0.', v_name));
  end if;

  select m.id into v_model from public.models m where m.name = v_name and m.is_image = v_image;
  if not found then
    if exists (select from public.models m where m.name = v_name) then
      perform infernet.refuse(422, 'bad_offer', format('%s is listed here as %s.', v_name,
                                                       case when v_image then 'a model' else 'an image' end));
    end if;
    if not infernet.setting('open_models')::boolean then
      perform infernet.refuse(422, 'unknown_model', format('Model %s is not listed here.', v_name),
        'Ask the operator to list it, or offer one of: infernet model ls');
    end if;
    insert into public.models (name, is_image, context_length)
    values (v_name, v_image, v_length)
    on conflict (name) do update set name = excluded.name returning id into v_model;
  end if;

  insert into public.offers as o (provider_id, model_id, price_input, price_output, price_second, slots, model_digest,
                                  context_length, vram_gb, labels, region, reputation, approved, listed)
  values (p_node.id, v_model, v_input, v_output, v_second, v_slots, p_offer ->> 'digest',
          v_length, p_node.vram_gb, p_node.labels, p_node.region, p_node.reputation,
          p_node.approval = 'approved', p_node.approval = 'approved' and p_node.is_public)
  on conflict (provider_id, model_id) do update set
    price_input = excluded.price_input, price_output = excluded.price_output, price_second = excluded.price_second,
    slots = excluded.slots, vram_gb = excluded.vram_gb, labels = excluded.labels, region = excluded.region,
    model_digest = case when p_serves then excluded.model_digest else coalesce(excluded.model_digest, o.model_digest) end,
    context_length = excluded.context_length, enabled = true,
    approved = excluded.approved, listed = excluded.listed
  returning o.id into v_offer;
  insert into infernet.offer_load as l (offer_id, slots) values (v_offer, v_slots)
  on conflict (offer_id) do update set slots = excluded.slots;
  return v_offer;
end $$;

-- Switches off the offers whose price lies below one that an operator has just raised. Each comes back when
-- its node registers it at a price that is taken.
create function infernet.follow_price_floor() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  update public.offers o set enabled = false
  from public.models m
  where m.id = o.model_id and o.enabled
    and case new.key when 'price_second_min' then m.is_image and o.price_second < (new.value #>> '{}')::numeric
                     when 'price_input_min' then not m.is_image and o.price_input < (new.value #>> '{}')::numeric
                     else not m.is_image and o.price_output < (new.value #>> '{}')::numeric end;
  return null;
end $$;

create trigger follow_price_floor after update of value on public.settings
  for each row when (new.key in ('price_input_min', 'price_output_min', 'price_second_min') and new.value is distinct from old.value)
  execute function infernet.follow_price_floor();
