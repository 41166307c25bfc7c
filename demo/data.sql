-- Data for the sample clinic of schema.sql: plain SQL, the same for the same parameters but for the
-- dates, which are relative to today. A parameter is a setting of the session; with psql:
--
--   PGOPTIONS='-c clinic.tenants=500' psql -f demo/schema.sql -f demo/data.sql
--
-- Rows go in tenant by tenant, in the order in which the tenants were made, so tenants that are
-- neighbours in `created_at` are neighbours on disk, as in a product that grew.

create temp table clinic as
select coalesce(nullif(current_setting('clinic.tenants', true), '')::int, 200) as tenants,
       coalesce(nullif(current_setting('clinic.active', true), '')::float8, 0.85) as active,       -- share of the tenants
       coalesce(nullif(current_setting('clinic.services', true), '')::int, 12) as services,        -- rows of a tenant of size 1
       coalesce(nullif(current_setting('clinic.products', true), '')::int, 60) as products,
       coalesce(nullif(current_setting('clinic.categories', true), '')::int, 5) as categories,     -- of products, at most 8
       coalesce(nullif(current_setting('clinic.staff', true), '')::int, 6) as staff,
       coalesce(nullif(current_setting('clinic.rostered', true), '')::int, 3) as rostered,         -- of the staff, with slots
       coalesce(nullif(current_setting('clinic.slots', true), '')::int, 16) as slots,              -- of one person on one day
       coalesce(nullif(current_setting('clinic.first_day', true), '')::int, -1) as first_day,      -- 0 is the tenant's today
       coalesce(nullif(current_setting('clinic.days', true), '')::int, 15) as days,
       coalesce(nullif(current_setting('clinic.pets', true), '')::int, 10) as pets,
       coalesce(nullif(current_setting('clinic.pages', true), '')::int, 3) as pages,
       coalesce(nullif(current_setting('clinic.giant_every', true), '')::int, 100) as giant_every, -- 0: no giants
       coalesce(nullif(current_setting('clinic.giant_factor', true), '')::float8, 20) as giant_factor,
       coalesce(nullif(current_setting('clinic.skewed', true), '')::bool, true) as skewed;         -- sizes from 0 to 3, else all 1

-- A uuid of version 4's form.
create function pg_temp.clinic_id(kind text, tenant int, n int) returns uuid language sql immutable as $$
  select overlay(overlay(md5(kind || tenant::text || '/' || n::text) placing '4' from 13) placing 'a' from 17)::uuid
$$;

-- A number from 0 to size - 1 that looks random.
create function pg_temp.clinic_pick(seed int, tenant int, n int, size int) returns int language sql immutable as $$
  select ((hashint8extended(tenant::int8 << 32 | n::int8, seed::int8) & 1073741823) % size)::int
$$;

create temp table clinic_tenants as
select n,
       pg_temp.clinic_id('tenant', n, 0) as id,
       giant,
       case
         when giant or (n::int8 * 7919 % 1000) < active * 1000 then 'active'
         when n % 2 = 0 then 'trial'
         else 'suspended'
       end as status,
       (array['Europe/Berlin', 'America/New_York', 'Asia/Kolkata', 'Pacific/Kiritimati', 'America/Los_Angeles',
              'Australia/Sydney', 'Europe/London', 'America/Sao_Paulo', 'Asia/Tokyo', 'Pacific/Pago_Pago',
              'Africa/Nairobi', 'America/St_Johns'])[1 + n % 12] as timezone,
       date_trunc('second', now()) - (tenants - n + 1) * interval '37 minutes' as created_at,
       case
         when giant then giant_factor
         when not skewed then 1
         when n % 12 = 5 then 0
         else 0.3 + 2.7 * power(pg_temp.clinic_pick(1, n, 0, 1000) / 1000.0, 3)
       end as size
from clinic,
     generate_series(1, tenants) n,
     lateral (select giant_every > 0 and n % greatest(giant_every, 1) = giant_every / 2 as giant) as giants;

insert into tenants (id, name, status, timezone, created_at)
select id,
       (array['Pfötchen', 'Happy Paws', 'Кошкин дом', '山の手動物病院', 'Clínica São Francisco', 'O''Malley & Sons',
              'Four Legs 🐾', 'Dr. "Whiskers"', 'Żabka', 'मित्र पशु'])[1 + pg_temp.clinic_pick(2, n, 0, 10)]
         || ' ' || n || case when giant then ' (group)' else '' end,
       status, timezone, created_at
from clinic_tenants
order by n;

insert into services (id, tenant_id, name, description, duration_minutes, price, active, updated_at)
select pg_temp.clinic_id('service', t.n, i), t.id,
       (array['Vaccination', 'Dental cleaning', 'Check-up', 'Neutering', 'X-ray', 'Ultrasound', 'Blood test', 'Grooming',
              'Nail trim', 'Microchip', 'Surgery consultation', 'Röntgen'])[1 + i % 12]
         || case when i >= 12 then ', level ' || i / 12 else '' end,
       case when i % 7 = 0 then null else
         'Includes the examination, a written report and a follow-up call within a week; please bring the vaccination record.'
       end,
       15 + 15 * (i % 5),
       20 + pg_temp.clinic_pick(3, t.n, i, 18000) / 100.0,
       i % 20 <> 19,
       t.created_at + i * interval '11.123456 seconds'
from clinic, clinic_tenants t, generate_series(1, ceil(services * t.size)::int) i
order by t.n, i;

insert into products (id, tenant_id, category, sku, name, description, price, stock, active, updated_at)
select pg_temp.clinic_id('product', t.n, i), t.id,
       (array['food', 'medicine', 'toys', 'care', 'travel', 'training', 'bedding', 'dental'])[1 + i % categories],
       'SKU-' || lpad(i::text, 6, '0'),
       (array['Salmon', 'Chicken', 'Lamb', 'Duck', 'Kräuter', 'Hypoallergenic', 'Puppy', 'Senior'])[1 + pg_temp.clinic_pick(4, t.n, i, 8)]
         || ' ' || (array['kibble', 'drops', 'ball', 'shampoo', 'carrier', 'treats', 'blanket'])[1 + pg_temp.clinic_pick(5, t.n, i, 7)]
         || ' ' || i,
       case when i % 4 = 0 then 'Recommended by our vets.' end,
       1 + pg_temp.clinic_pick(6, t.n, i, 9000) / 100.0,
       pg_temp.clinic_pick(7, t.n, i, 250),
       i % 25 <> 24,
       t.created_at + i * interval '3.5 seconds'
from clinic, clinic_tenants t, generate_series(1, ceil(products * t.size)::int) i
order by t.n, i;

insert into staff (id, tenant_id, name, role, email, bio, working_hours, active, updated_at)
select pg_temp.clinic_id('staff', t.n, i), t.id,
       (array['Dr. Zoë', 'Dr. Jürgen', 'Anna', '花子', 'Siobhán', 'Dr. Priya', 'Łukasz', 'Mary'])[1 + pg_temp.clinic_pick(8, t.n, i, 8)]
         || ' ' || (array['Müller', 'O''Neill', '山田', 'Nowak', 'García', 'Iyer', 'Smith', 'Åkesson'])[1 + pg_temp.clinic_pick(9, t.n, i, 8)],
       (array['veterinarian', 'nurse', 'reception', 'surgeon'])[1 + i % 4],
       'staff' || i || '@clinic-' || t.n || '.example',
       case when i % 5 = 0 then null else
         E'Loves animals since childhood.\nSpecialises in small pets; speaks "cat" fluently 🐈.'
       end,
       case when i % 6 = 0 then '{}'::jsonb else
         jsonb_build_object('mon', '["09:00", "17:00"]'::jsonb, 'wed', '["09:00", "17:00"]'::jsonb, 'load', 0.75, 'remote', i % 2 = 0)
       end,
       i % 15 <> 14,
       t.created_at + i * interval '1 hour'
from clinic, clinic_tenants t, generate_series(1, ceil(staff * t.size)::int) i
order by t.n, i;

insert into slots (id, tenant_id, staff_id, starts_at, ends_at, status, updated_at)
select pg_temp.clinic_id('slot', t.n, (day * 1000 + person) * 1000 + slot), t.id,
       pg_temp.clinic_id('staff', t.n, person), starts_at, starts_at + interval '30 minutes',
       case when pg_temp.clinic_pick(10, t.n, (day * 1000 + person) * 1000 + slot, 2) = 0 then 'open' else 'booked' end,
       t.created_at
from clinic,
     clinic_tenants t,
     generate_series(0, days - 1) day,
     generate_series(1, ceil(rostered * t.size)::int) person,
     generate_series(0, slots - 1) slot,
     lateral (
       select ((now() at time zone t.timezone)::date + (first_day + day) + time '09:00' + slot * interval '30 minutes')
                at time zone t.timezone as starts_at
     ) as times
order by t.n, day, person, slot;

insert into pets (id, tenant_id, owner_name, name, species, breed, birth_date, notes, updated_at)
select pg_temp.clinic_id('pet', t.n, i), t.id,
       (array['Jane Doe', 'José Núñez', '田中 一郎', 'Olga Иванова', 'Seán Ó Briain'])[1 + pg_temp.clinic_pick(11, t.n, i, 5)],
       (array['Bella', 'Max', 'Мурка', 'ポチ', 'Ñandú', 'Rex', 'Luna 🌙'])[1 + pg_temp.clinic_pick(12, t.n, i, 7)],
       (array['dog', 'cat', 'rabbit', 'parrot'])[1 + i % 4],
       case when i % 3 = 0 then null else 'mixed' end,
       case when i % 5 = 0 then null else current_date - 30 - pg_temp.clinic_pick(13, t.n, i, 5000) end,
       case when i % 2 = 0 then E'Afraid of "vacuum cleaners".\tBites \\ scratches.' end,
       t.created_at + i * interval '2 hours'
from clinic, clinic_tenants t, generate_series(1, ceil(pets * t.size)::int) i
order by t.n, i;

insert into pages (id, tenant_id, slug, title, body, published, updated_at)
select pg_temp.clinic_id('page', t.n, i), t.id,
       case i when 1 then 'home' when 2 then 'about' when 3 then 'imprint' else 'news-' || i end,
       (array['Welcome', 'About us', 'Imprint', 'News'])[least(i, 4)],
       '<h1>' || (array['Welcome', 'About us', 'Imprint', 'News'])[least(i, 4)] || E'</h1>\n'
         || repeat('<p class="text">We care for your pets – day &amp; night.</p>' || E'\n', 2 + i),
       i % 8 <> 7,
       t.created_at + i * interval '1 day'
from clinic, clinic_tenants t, generate_series(1, case when t.size = 0 then 0 else pages end) i
order by t.n, i;

drop table clinic_tenants;
drop table clinic;

analyze tenants, services, products, staff, slots, pets, pages;
